----------------------------- MODULE MCFailover -----------------------------
(* Keys for Failover: one, or two that are two partitions. *)
EXTENDS Failover
K1 == {"a"}
K2 == {"a", "b"}
=============================================================================

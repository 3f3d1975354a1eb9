------------------------------ MODULE Failover ------------------------------
(***************************************************************************)
(* Fail-over: what the bridge may do when the server is another one, or    *)
(* another past of the same one. WAL -> events topic -> state -> confirm,  *)
(* with promotions of a standby that may lack the end of WAL and whose     *)
(* slot may lag, raw copies that are put back on their timeline, slots     *)
(* that are gone or that somebody made anew, crashes with events appended  *)
(* and the state not committed, and a second instance with an old state.   *)
(*                                                                         *)
(* Abstractions                                                            *)
(*  - A position is an index into the server's WAL. Each record there has  *)
(*    an id of its own, which stands for (LSN, xid, time); its key is None *)
(*    if it is no change of ours. "Commit LSN < X" is "index <= X".        *)
(*  - The image of an aggregate is the id of the change that wrote it; the *)
(*    row of a key is the newest id that the WAL has for it.               *)
(*  - The latest topic follows the events, so it is left out, as are       *)
(*    zombies: Sink has both. One key is one partition.                    *)
(*  - The decision is one step, with the look whether the stream meets the *)
(*    newest commit that state and topics know.                            *)
(***************************************************************************)
EXTENDS Naturals, Sequences, FiniteSets
CONSTANTS Keys, None, MaxTx,
          MaxCrash, MaxPromote, MaxRestore, MaxMove, MaxTake, MaxStateLoss,
          Sync,         \* the stream has nothing that the standby lacks (synchronized_standby_slots)
          Decide,       \* "history" | "system": the same system id is enough
          SFrom,        \* "topics": S is the newest of state and topics | "state"
          SlotBelow,    \* "P": confirmed <= min(P, X) | "S"
          BackToX,      \* P moves back to X
          RepairFrom,   \* "fork": the base begins at the fork | "confirmed"
          Meets,        \* "topics": on the same timeline, the newest commit that state or topics know is met | "state" | "none"
          Between,      \* and nothing is between the state's newest commit and P
          MeetsLater,   \* on a later timeline as well
          Begins,       \* a timeline is known by its number and where it began | by its number
          Marked        \* records tell the timeline that they were made on
VARIABLES srv,      \* the server: wal, tl, hist: the timelines of its past, each with where it ended (TIMELINE_HISTORY)
          slot,     \* conf: confirmed up to here; ok: it is there
          copy,     \* a raw copy, or a standby that was forgotten: server and slot
          ev,       \* the events topic, all partitions
          dsk, oth, \* the state on disk; that of another instance
          pc, hi, st, base, todo, owed,   \* the running instance: received up to hi, its state, what is to be appended
          why,      \* of a refusal
          nid, sess, sent, old, gap, left
vars == <<srv, slot, copy, ev, dsk, oth, pc, hi, st, base, todo, owed, why, nid, sess, sent, old, gap, left>>

Max(a, b) == IF a > b THEN a ELSE b
Min(a, b) == IF a < b THEN a ELSE b
MaxOf(S) == IF S = {} THEN 0 ELSE CHOOSE x \in S : \A y \in S : y <= x
Range(s) == {s[i] : i \in 1..Len(s)}
Last(s) == s[Len(s)]

NoKey == [pos |-> 0, v |-> 0, img |-> 0]
Empty == [k \in Keys |-> NoKey]
\* What a state is: nothing yet (lost), or P, its timeline and where that began, the keys, the base, how much
\* of the topic it knows, how many sessions, whether a comparison is owed, whether it was found to be of another past.
Fresh == [lost |-> TRUE, P |-> 0, tl |-> 0, begin |-> 0, st |-> Empty, base |-> 0, e |-> 0, id |-> 0, seen |-> 0, sess |-> 0, owed |-> FALSE, bad |-> FALSE]
Named(s, t) == {i \in 1..Len(s.hist) : s.hist[i].tl = t}
Begin(s, t) == LET i == IF t = s.tl THEN Len(s.hist) + 1 ELSE CHOOSE i \in Named(s, t) : TRUE IN IF i = 1 THEN 0 ELSE s.hist[i-1].x
Row(k) == LET is == {i \in 1..Len(srv.wal) : srv.wal[i].k = k} IN IF is = {} THEN 0 ELSE srv.wal[MaxOf(is)].id

Init ==
  /\ srv = [wal |-> << >>, tl |-> 1, hist |-> << >>] /\ slot = [conf |-> 0, ok |-> TRUE] /\ copy = << >>
  /\ ev = << >> /\ dsk = [Fresh EXCEPT !.lost = FALSE, !.tl = 1] /\ oth = Fresh
  /\ pc = "down" /\ hi = 0 /\ st = Empty /\ base = 0 /\ todo = << >> /\ owed = FALSE /\ why = ""
  /\ nid = 1 /\ sess = 0 /\ sent = 0 /\ old = 0 /\ gap = 0
  /\ left = [crash |-> MaxCrash, promote |-> MaxPromote, restore |-> MaxRestore, move |-> MaxMove, take |-> MaxTake, loss |-> MaxStateLoss]

(* ---- the legacy database ---- *)
DbCommit ==
  /\ nid <= MaxTx
  /\ \E k \in Keys \cup {None} : srv' = [srv EXCEPT !.wal = Append(@, [k |-> k, id |-> nid])]
  /\ nid' = nid + 1
  /\ UNCHANGED <<slot, copy, ev, dsk, oth, pc, hi, st, base, todo, owed, why, sess, sent, old, gap, left>>

(* ---- fold: the state becomes what the topics have ---- *)
RECURSIVE Fold(_, _)
Fold(s, i) == IF i > Len(ev) THEN s
              ELSE LET e == ev[i] IN Fold(IF e.pos > s[e.k].pos THEN [s EXCEPT ![e.k] = [pos |-> e.pos, v |-> e.v, img |-> e.id]] ELSE s, i + 1)
Folded == Fold(dsk.st, dsk.seen + 1)
Top(s) == MaxOf({s[k].pos : k \in Keys})
\* Records of another base behind those that the state knows: another instance has repaired since. Such a state counts as none at all.
Lost == dsk.lost \/ \E i \in dsk.seen+1..Len(ev) : ev[i].base # dsk.base
BaseNow == IF Lost THEN MaxOf({e.base : e \in Range(ev)}) ELSE dsk.base
Less(a, b) == IF a > b THEN a - b ELSE 0
\* the newest commit that is known, as [raw, id]; raw 0: none that is of this base
Known == LET c == {e \in Range(ev) : e.op = "w" /\ e.base = BaseNow}
             n == MaxOf({e.raw : e \in c})
             t == IF c = {} THEN [raw |-> 0, id |-> 0] ELSE [raw |-> n, id |-> (CHOOSE e \in c : e.raw = n).id]
         IN IF Meets = "topics" /\ (Lost \/ t.raw > dsk.e) THEN t ELSE IF Lost THEN [raw |-> 0, id |-> 0] ELSE [raw |-> dsk.e, id |-> dsk.id]

(* ---- the decision ---- *)
Past(t) == Named(srv, t) # {}                  \* the server's history names timeline t
End(t) == srv.hist[CHOOSE i \in Named(srv, t) : TRUE].x
SameTL == dsk.tl = srv.tl /\ (Begins => dsk.begin = Begin(srv, srv.tl))
Later == Past(dsk.tl) /\ (Begins => dsk.begin = Begin(srv, dsk.tl))
X == End(dsk.tl)                              \* only if Later
S == Less(IF SFrom = "topics" THEN Top(Folded) ELSE Top(dsk.st), BaseNow)
\* is there anything published behind where its timeline ended?
Beyond == IF Marked THEN \E e \in (IF SFrom = "topics" THEN Range(ev) ELSE {ev[i] : i \in 1..dsk.seen}) :
                           \/ e.base = BaseNow /\ e.tl # srv.tl /\ (Past(e.tl) => e.raw > End(e.tl))
                           \/ e.base # BaseNow /\ e.pos > X + BaseNow       \* the fork is below where the base began
          ELSE S > X
Others == sess # dsk.sess                     \* another instance has been at the topics
\* The stream from the slot meets that commit, and between the state's newest commit and P none that the state does not have.
Met(P) == LET n == Known
       IN \/ Meets = "none"
          \/ /\ slot.conf >= n.raw \/ n.id = 0 \/ (n.raw <= Len(srv.wal) /\ srv.wal[n.raw].id = n.id)
             /\ (Between /\ ~Lost) => \A i \in Max(slot.conf, dsk.e)+1..Min(P, Len(srv.wal)) : srv.wal[i].k = None
Bound == IF SlotBelow = "P" THEN Min(dsk.P, X) ELSE S
\* "" to go on, "compare" to go on from the slot with a comparison, else the refusal
Verdict ==
  IF dsk.bad THEN "diverged"
  ELSE IF Lost THEN IF ~slot.ok THEN "slot" ELSE IF S > Len(srv.wal) THEN "restored" ELSE IF ~Met(0) THEN "diverged" ELSE "compare"
  ELSE IF Later THEN IF Decide = "history" /\ Beyond THEN "phantom"
                     ELSE IF ~slot.ok THEN "slot"
                     ELSE IF MeetsLater /\ ~Met(Min(dsk.P, X)) THEN "diverged"
                     ELSE IF slot.conf > Bound THEN (IF Others THEN "compare" ELSE "slot") ELSE ""
  ELSE IF SameTL THEN IF dsk.P > Len(srv.wal) THEN "restored"
                      ELSE IF ~slot.ok THEN "slot"
                      ELSE IF ~Met(dsk.P) THEN "diverged"
                      ELSE IF slot.conf > dsk.P THEN (IF Others THEN "compare" ELSE "slot") ELSE ""
  ELSE "unrelated"

Start ==
  /\ pc = "down"
  /\ LET v == Verdict
         back == IF Lost \/ v = "compare" THEN slot.conf ELSE IF Later /\ BackToX THEN Min(dsk.P, X) ELSE dsk.P
     IN IF v \notin {"", "compare"}
        THEN /\ pc' = "refused" /\ why' = v /\ dsk' = [dsk EXCEPT !.bad = @ \/ v = "diverged"]
             /\ UNCHANGED <<hi, st, base, owed, sess, gap>>
        ELSE /\ pc' = "run" /\ why' = ""
             /\ hi' = slot.conf /\ st' = Folded /\ base' = BaseNow /\ sess' = sess + 1
             /\ owed' = (dsk.owed \/ v = "compare")
             /\ gap' = IF v = "compare" THEN Max(gap, slot.conf) ELSE gap        \* it says so: tables are compared
             /\ dsk' = [dsk EXCEPT !.lost = FALSE, !.P = back, !.tl = srv.tl, !.begin = Begin(srv, srv.tl), !.st = Folded, !.base = BaseNow,
                                   !.seen = Len(ev), !.sess = sess + 1, !.owed = @ \/ v = "compare", !.e = Max(Known.raw, IF Lost \/ v = "compare" THEN back ELSE 0),
                                   !.id = IF (Lost \/ v = "compare") /\ back > Known.raw THEN 0 ELSE Known.id]
  /\ todo' = << >>
  /\ UNCHANGED <<srv, slot, copy, ev, oth, nid, sent, old, left>>

Repair ==   \* backfill --reconcile
  /\ pc = "refused"
  /\ LET forked == ~Lost /\ ~dsk.bad /\ Later
         fork == IF forked THEN X ELSE Len(srv.wal)
         end == ~slot.ok \/ (RepairFrom = "fork" /\ ~forked)      \* made anew, or moved to the end of WAL
         from == IF end THEN Len(srv.wal) ELSE IF RepairFrom = "fork" THEN Max(slot.conf, fork) ELSE slot.conf
         f == Folded
         b == Max(IF why = "slot" THEN BaseNow ELSE BaseNow + 1, Less(Top(f), IF RepairFrom = "fork" THEN fork ELSE from))
     IN /\ slot' = [conf |-> from, ok |-> TRUE] /\ hi' = from /\ st' = f /\ base' = b /\ gap' = from
        /\ dsk' = [Fresh EXCEPT !.lost = FALSE, !.P = from, !.tl = srv.tl, !.begin = Begin(srv, srv.tl), !.st = f, !.base = b,
                                !.seen = Len(ev), !.sess = sess + 1, !.owed = TRUE, !.e = from]
  /\ pc' = "run" /\ why' = "" /\ owed' = TRUE /\ todo' = << >> /\ sess' = sess + 1 /\ old' = Len(ev)
  /\ UNCHANGED <<srv, copy, ev, oth, nid, sent, left>>

(* ---- streaming ---- *)
Event(k, raw, id, op, s) == [k |-> k, pos |-> raw + base, raw |-> raw, base |-> base, id |-> id, v |-> s[k].v + 1, tl |-> srv.tl, op |-> op]
RECURSIVE Apply(_, _, _)
Apply(s, n, m) ==   \* [st, evs] after the changes n..m: below P dropped, at or below the key's place passed over
  IF n > m THEN [st |-> s, evs |-> << >>]
  ELSE LET c == srv.wal[n]
           new == c.k # None /\ n > dsk.P /\ n + base > s[c.k].pos
           e == Event(c.k, n, c.id, "w", s)
           r == Apply(IF new THEN [s EXCEPT ![c.k] = [pos |-> e.pos, v |-> e.v, img |-> e.id]] ELSE s, n + 1, m)
       IN [st |-> r.st, evs |-> IF new THEN <<e>> \o r.evs ELSE r.evs]

Receive ==
  /\ pc = "run" /\ todo = << >> /\ hi < Len(srv.wal)
  /\ \E m \in hi+1..Min(hi + 2, Len(srv.wal)) :
       LET r == Apply(st, hi + 1, m)
       IN /\ st' = r.st /\ todo' = r.evs /\ hi' = m /\ sent' = Max(sent, m)
  /\ UNCHANGED <<srv, slot, copy, ev, dsk, oth, pc, base, owed, why, nid, sess, old, gap, left>>

Publish ==   \* partitions in any order, each in its own
  /\ pc = "run" /\ todo # << >>
  /\ \E i \in 1..Len(todo) :
       /\ \A j \in 1..i-1 : todo[j].k # todo[i].k
       /\ ev' = Append(ev, todo[i])
       /\ todo' = SubSeq(todo, 1, i-1) \o SubSeq(todo, i+1, Len(todo))
  /\ UNCHANGED <<srv, slot, copy, dsk, oth, pc, hi, st, base, owed, why, nid, sess, sent, old, gap, left>>

Compare ==   \* every table at a watermark, which is a record of WAL
  /\ pc = "run" /\ owed /\ todo = << >> /\ hi = Len(srv.wal)
  /\ LET differ == {k \in Keys : st[k].img # Row(k)}
         RECURSIVE Q(_) Q(D) == IF D = {} THEN << >> ELSE LET k == CHOOSE k \in D : TRUE IN <<Event(k, hi + 1, Row(k), "r", st)>> \o Q(D \ {k})
     IN /\ todo' = Q(differ)
        /\ st' = [k \in Keys |-> IF k \in differ THEN [pos |-> hi + 1 + base, v |-> st[k].v + 1, img |-> Row(k)] ELSE st[k]]
  /\ srv' = [srv EXCEPT !.wal = Append(@, [k |-> None, id |-> 100 + nid * 10 + Len(srv.wal)])]
  /\ hi' = hi + 1 /\ sent' = Max(sent, hi + 1) /\ owed' = FALSE
  /\ UNCHANGED <<slot, copy, ev, dsk, oth, pc, base, why, nid, sess, old, gap, left>>

Commit ==
  /\ pc = "run" /\ todo = << >> /\ (dsk.P < hi \/ dsk.owed # owed)
  /\ LET c == {e \in Range(ev) : e.op = "w" /\ e.base = base}
         n == MaxOf({e.raw : e \in c})
     IN dsk' = [dsk EXCEPT !.P = Max(@, hi), !.st = st, !.base = base, !.seen = Len(ev), !.owed = owed,
                           !.e = Max(@, n), !.id = IF n <= dsk.e THEN @ ELSE (CHOOSE e \in c : e.raw = n).id]
  /\ UNCHANGED <<srv, slot, copy, ev, oth, pc, hi, st, base, todo, owed, why, nid, sess, sent, old, gap, left>>

Confirm ==
  /\ pc = "run" /\ slot.ok /\ slot.conf < dsk.P /\ dsk.P <= hi
  /\ slot' = [slot EXCEPT !.conf = dsk.P]
  /\ UNCHANGED <<srv, copy, ev, dsk, oth, pc, hi, st, base, todo, owed, why, nid, sess, sent, old, gap, left>>

(* ---- faults ---- *)
Ends == pc' = "down" /\ hi' = 0 /\ st' = Empty /\ base' = 0 /\ todo' = << >> /\ owed' = FALSE /\ why' = ""
Crash ==
  /\ pc = "run" /\ left.crash > 0 /\ Ends
  /\ \E l \in {0, 1} : /\ l <= left.loss
                       /\ dsk' = IF l = 1 THEN Fresh ELSE dsk
                       /\ left' = [left EXCEPT !.crash = @ - 1, !.loss = @ - l]
  /\ UNCHANGED <<srv, slot, copy, ev, oth, nid, sess, sent, old, gap>>
Takeover ==   \* another instance, with the state that it had
  /\ pc \in {"run", "down"} /\ left.take > 0 /\ Ends
  /\ dsk' = oth /\ oth' = dsk /\ left' = [left EXCEPT !.take = @ - 1]
  /\ UNCHANGED <<srv, slot, copy, ev, nid, sess, sent, old, gap>>

\* A server that has the first x records of another's WAL, with a slot at c, on timeline tl.
Becomes(s, c, x, tl) ==
  /\ srv' = [wal |-> SubSeq(s.wal, 1, x), tl |-> tl, hist |-> IF tl = s.tl THEN s.hist ELSE Append(s.hist, [tl |-> s.tl, x |-> x])]
  /\ slot' = c /\ sent' = Min(sent, x) /\ Ends
  /\ UNCHANGED <<ev, dsk, oth, nid, sess, old, gap>>
Promote ==   \* the standby may lack the end of WAL; its slot lags, or was not there yet
  /\ pc # "refused" /\ left.promote > 0
  /\ \E x \in Max(Begin(srv, srv.tl), IF Sync THEN sent ELSE 0)..Len(srv.wal) :
     \E c \in {[conf |-> n, ok |-> TRUE] : n \in 0..Min(slot.conf, x)} \cup (IF left.move > 0 THEN {[conf |-> 0, ok |-> FALSE]} ELSE {}) :
       /\ ~slot.ok => ~c.ok
       /\ Becomes(srv, c, x, srv.tl + 1)
       /\ left' = [left EXCEPT !.promote = @ - 1, !.move = IF c.ok THEN @ ELSE @ - 1]
  /\ UNCHANGED copy
TakeCopy ==
  /\ left.restore > 0 /\ copy = << >> /\ Len(srv.wal) > 0
  /\ copy' = <<[srv |-> srv, slot |-> slot]>>
  /\ UNCHANGED <<srv, slot, ev, dsk, oth, pc, hi, st, base, todo, owed, why, nid, sess, sent, old, gap, left>>
RestoreCopy ==   \* on its timeline, or promoted: a standby that nobody thought of, which may have heard of later timelines
  /\ pc # "refused" /\ left.restore > 0 /\ copy # << >>
  /\ \E tl \in {copy[1].srv.tl, copy[1].srv.tl + 1, srv.tl + 1} : Becomes(copy[1].srv, copy[1].slot, Len(copy[1].srv.wal), tl)
  /\ left' = [left EXCEPT !.restore = @ - 1] /\ copy' = << >>
MoveSlot ==   \* somebody made it anew
  /\ pc = "down" /\ left.move > 0 /\ slot.conf < Len(srv.wal)
  /\ \E c \in slot.conf+1..Len(srv.wal) : slot' = [conf |-> c, ok |-> TRUE]
  /\ left' = [left EXCEPT !.move = @ - 1]
  /\ UNCHANGED <<srv, copy, ev, dsk, oth, pc, hi, st, base, todo, owed, why, nid, sess, sent, old, gap>>

AtRest == pc = "run" /\ hi = Len(srv.wal) /\ todo = << >> /\ ~owed
Idle == AtRest /\ nid > MaxTx /\ UNCHANGED vars
Next == DbCommit \/ Start \/ Repair \/ Receive \/ Publish \/ Compare \/ Commit \/ Confirm
        \/ Crash \/ Takeover \/ Promote \/ TakeCopy \/ RestoreCopy \/ MoveSlot \/ Idle
Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
At(id) == MaxOf({i \in 1..Len(srv.wal) : srv.wal[i].id = id})      \* where the surviving log has it; 0: nowhere
Of(k) == SelectSeq(ev, LAMBDA e : e.k = k)
\* no published change is outside the surviving log unless refused, or told by a repair
NoPhantom == pc = "run" => \A i \in old+1..Len(ev) : ev[i].op = "w" => At(ev[i].id) > 0
\* no surviving change is skipped: all that was received is there or on its way, but for what a comparison made good
NoSkip == pc = "run" => \A i \in gap+1..Min(hi, Len(srv.wal)) : srv.wal[i].k # None =>
            \E e \in Range(ev) \cup Range(todo) : e.id = srv.wal[i].id
\* nor is one forgotten because it was confirmed
NoLoss == \A i \in gap+1..Min(slot.conf, Len(srv.wal)) : (pc = "run" /\ srv.wal[i].k # None) =>
            \E e \in Range(ev) \cup Range(todo) : e.id = srv.wal[i].id
NoDuplicate == \A i, j \in 1..Len(ev) : (i < j /\ ev[i].op = "w" /\ ev[j].op = "w") => ev[i].id # ev[j].id
\* a change of the stream never stands behind a newer one of the surviving log
NoBack == \A k \in Keys : LET s == Of(k) IN \A i, j \in 1..Len(s) :
            (i < j /\ s[j].op = "w" /\ At(s[j].id) > 0 /\ At(s[i].id) > 0) => At(s[i].id) < At(s[j].id)
InOrder == \A k \in Keys : LET s == Of(k) IN \A i \in 1..Len(s) : s[i].v = i /\ (i > 1 => s[i-1].pos < s[i].pos)
Right == AtRest => \A k \in Keys : (IF Of(k) = << >> THEN 0 ELSE Last(Of(k)).id) = Row(k)
\* a refusal that names a branch is right
RefusedRightly == (pc = "refused" /\ why = "phantom") => \E i \in 1..Len(ev) : At(ev[i].id) = 0 \/ ev[i].op = "r"
=============================================================================

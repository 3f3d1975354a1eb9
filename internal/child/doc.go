// Package child runs servers for the demo and for tests: processes that do not
// outlive their parent, the scratch directories and the ports they need.
//
// On Linux the kernel signals a child when its parent dies, however it dies;
// elsewhere only an orderly end of the parent stops it. A scratch directory
// whose owner died is removed by the next process that asks for one.
package child

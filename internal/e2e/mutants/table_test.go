package mutants_test

// How the property of the bridge is asked: until it fails, without a file of the
// failure, and not simplified.
var often = []string{"-rapid.checks=1000", "-rapid.nofailfile", "-rapid.shrinktime=1ms"}

// What the property says of topics that do not tell what was committed, and of a
// bridge that stops though nothing is wrong.
const (
	wrongTopics = `\d+ wrong\n`
	stopped     = `the bridge stopped: .*|run: .*`
	lost        = `not the record that is remembered|it lost its end|is missing|which the events topic does not have|not drained in time|`
)

const (
	settleFile = "internal/bridge/settle.go"
	recovery   = "internal/bridge/recover.go"
	succession = "internal/bridge/succession.go"
	proofFile  = "internal/bridge/proof.go"
	streamFile = "internal/bridge/stream.go"
	applyFile  = "internal/bridge/apply.go"
	session    = "sink/session.go"
)

// exactlyOnce makes a mutant that the property of the bridge finds.
func exactlyOnce(name, says string, edits ...edit) mutant {
	return mutant{name: name, edits: edits, pkg: "internal/bridge", test: "TestExactlyOnce", args: often, says: says}
}

// property makes a mutant that another property of the bridge finds.
func property(name, test, says string, edits ...edit) mutant {
	return mutant{name: name, edits: edits, pkg: "internal/bridge", test: test, args: often, says: says}
}

// failover makes a mutant that the property of fail-overs finds.
func failover(name, says string, edits ...edit) mutant {
	return property(name, "TestFailover", says, edits...)
}

// history makes a mutant that the property of the transformer finds.
func history(name, says string, edits ...edit) mutant {
	return mutant{name: name, edits: edits, pkg: "transform", test: "TestHistories", args: often, says: says}
}

// unit makes a mutant that one test finds.
func unit(name, pkg, test, says string, edits ...edit) mutant {
	return mutant{name: name, edits: edits, pkg: pkg, test: test, says: says}
}

const settlePiece = "func (s *stream) settlePiece(ctx context.Context, p *piece) error {\n"

const publishEvents = `		if err := p.pub.Events(ctx); err != nil { // 1
			return fmt.Errorf("publish events: %w", err)
		}
`

const publishLatest = `		if err := p.pub.Latest(ctx); err != nil { // 2
			return fmt.Errorf("publish latest: %w", err)
		}
`

const commitState = `	if err := s.b.store.Commit(p.batch); err != nil { // 3
		return fmt.Errorf("commit the state: %w", err)
	}
`

var mutants = []mutant{
	// The order of the durable steps.
	unit("confirm before events", "internal/bridge", "TestConfirmsOnlyWhatIsPublished", "before events has it",
		edit{settleFile, settlePiece, settlePiece + "	s.committed.set(p.end)\n"}),
	exactlyOnce("latest before events", lost+stopped+"|"+wrongTopics,
		edit{settleFile, publishEvents, ""}, edit{settleFile, publishLatest, publishLatest + publishEvents}),
	exactlyOnce("state committed before events", lost+stopped+"|"+wrongTopics,
		edit{settleFile, commitState, ""},
		edit{settleFile, settlePiece, settlePiece + commitState}),
	exactlyOnce("state committed before latest", lost+stopped+"|"+wrongTopics,
		edit{settleFile, commitState, ""},
		edit{settleFile, publishEvents, publishEvents + commitState},
		edit{settleFile, "	s.committed.set(p.end) // 4", "	if p.pub == nil {\n	" + commitState + "	}\n	s.committed.set(p.end) // 4"}),
	unit("confirm before state", "internal/bridge", "TestConfirmsOnlyWhatIsCommitted", "the state does not have it",
		edit{settleFile, commitState, "	if p.end != 0 {\n		s.src.Confirm(p.end)\n	}\n" + commitState}),
	unit("confirm before latest and state", "internal/bridge", "TestConfirmsOnlyWhatIsPublished", "before latest has it",
		edit{settleFile, publishLatest, "		s.committed.set(p.end)\n" + publishLatest}),
	unit("confirm before the state is flushed", "internal/bridge", "TestConfirmsOnlyWhatIsFlushed", "without a flush",
		edit{settleFile, "		if err := s.b.store.Sync(ctx); err != nil {", "		s.src.Confirm(lsn)\n		if err := s.b.store.Sync(ctx); err != nil {"}),
	exactlyOnce("progress confirmed past what is under way", wrongTopics,
		edit{streamFile, "	s.reached = max(s.reached, batch.Reached)\n", "	s.reached = max(s.reached, batch.Reached)\n	s.src.Confirm(batch.End)\n"}),
	exactlyOnce("progress confirmed and not in the state", "it was moved to .* while the state ends at|"+stopped,
		edit{streamFile, "		setLSN(p.batch, p.end)\n", "		_ = setLSN\n"}),

	// Recovery.
	exactlyOnce("topics folded before the fence", wrongTopics+"|"+stopped,
		edit{recovery, "	if err := b.sink.Fence(ctx); err != nil {\n		return fmt.Errorf(\"fence former sessions: %w\", err)\n	}\n", ""},
		edit{recovery, "recover %s: %w\", t.Aggregate, err)\n		}\n	}\n	return nil\n", "recover %s: %w\", t.Aggregate, err)\n		}\n	}\n	return b.sink.Fence(ctx)\n"}),
	exactlyOnce("no fold of events", wrongTopics+"|"+stopped,
		edit{recovery, "		moved, err := f.apply(s)\n", "		moved, err := false, error(nil)\n"}),
	exactlyOnce("no fold of latest", wrongTopics+"|"+stopped,
		edit{recovery, "		if _, err := f.apply(s); err != nil {\n			return err\n		}\n", ""}),
	exactlyOnce("latest not published for what the events moved", "latest of key|"+wrongTopics,
		edit{recovery, "	if len(f.order) == 0 {\n", "	if len(f.order) >= 0 {\n"}),
	unit("marks not in the piece's commit", "internal/bridge", "TestMovedSlotIsRefused", "streams over the gap",
		edit{streamFile, "			s.b.memory.setMark(p.batch, markName(m.Table.ID, m.Topic, m.Partition), m)\n", "			_ = m\n"}),
	unit("own fences taken for another instance's", "internal/bridge", "TestMovedSlotIsRefused/died_between_fence_and_fold", "streams over the gap",
		edit{recovery, "remembered[i].End+fences {", "remembered[i].End+1 {"}),
	unit("renewals taken for another instance's", "internal/bridge", "TestMovedSlotIsRefused/renewed", "streams over the gap",
		edit{"internal/bridge/memory.go", "mark.End, mark.LastAt = mark.End+1, -1", "mark.LastAt = -1"}),
	unit("marks not committed with the fold", "internal/bridge", "TestMovedSlotIsRefused", "streams over the gap",
		edit{recovery, "		f.b.memory.setMark(f.batch, markName(f.table.ID, m.Topic, m.Partition), m)\n", "		_ = m\n"}),
	exactlyOnce("only the first table recovered", wrongTopics+"|"+stopped,
		edit{recovery, "	for i, t := range b.mapping.Tables {\n", "	for i, t := range b.mapping.Tables[:1] {\n"}),
	exactlyOnce("one table's marks taken for another's", wrongTopics+"|"+stopped,
		edit{streamFile, "			s.b.memory.setMark(p.batch, markName(m.Table.ID, m.Topic, m.Partition), m)\n", "			s.b.memory.setMark(p.batch, markName(1, m.Topic, m.Partition), m)\n"}),
	exactlyOnce("TRUNCATE of one table deletes another's rows", wrongTopics+"|"+stopped,
		edit{streamFile, "s.b.store.Keys(ctx, table.ID, state.Existing)", "s.b.store.Keys(ctx, 1, state.Existing)"}),
	exactlyOnce("a keepalive's position confirmed and not in the state", "it was moved to .* while the state ends at|"+stopped,
		edit{streamFile, "	if p.end != 0 {\n		setLSN(p.batch, p.end)\n", "	if p.end != 0 && p.pub != nil {\n		setLSN(p.batch, p.end)\n"}),
	exactlyOnce("a batch taken while the one before is in use", wrongTopics+"|"+stopped,
		edit{streamFile, "batches: make(chan capture.Batch), ", "batches: make(chan capture.Batch, 1), "}),
	exactlyOnce("a piece mapped against the committed state alone", wrongTopics+"|"+stopped,
		edit{"internal/state/batch.go", "	earlier := b.s.before(b)\n	for i", "	earlier := b.s.before(nil)\n	for i"}),
	unit("old image of a moved key forgotten", "internal/bridge", "TestMovedKeyHalfway", wrongTopics,
		edit{"internal/bridge/states.go", "	s.SetMeta(oldImageName(pos), image)\n", ""}),

	// Positions.
	history("no event index in the place", "fold|crashes changed",
		edit{"transform/event.go", "	return int(p.Index) - int(q.Index)\n", "	return 0\n"}),
	history("<= in place of <: the rest of a change passed over", "crashes changed|fold is|the row|is not in the state",
		edit{"transform/transform.go", "	return order <= 0, nil\n", "	return order < 0, nil\n"}),
	history("events of a change at its own place made again", "fold of|crashes changed",
		edit{"transform/transform.go", "		s.next = max(first, e.Place.Index+1)\n", "		_ = order\n"}),
	history("< in place of <=: a record folded at its own place", "fold",
		edit{"transform/fold.go", "	if s.Place.Compare(e.Place) <= 0 {", "	if s.Place.Compare(e.Place) < 0 {"}),
	unit("no kind in the position", "transform", "TestSequence", "the places as",
		edit{"capture/change.go", "	if c := cmp.Compare(p.Kind, q.Kind); c != 0 {\n		return c\n	}\n", ""}),
	exactlyOnce("a chunk applied before its watermark", wrongTopics,
		edit{applyFile, "for len(s.due) > 0 && s.due[0].chunk.Watermark <= s.reached {", "for len(s.due) > 0 {"}),
	unit("commit LSN in place of end LSN", "capture", "TestProgress", "commit .*-want",
		edit{"capture/tx.go", "	a.end(m.end)\n", "	a.end(m.commit)\n"}),
	unit("keepalive confirmed inside a transaction", "capture", "TestProgress", "keepalive inside",
		edit{"capture/tx.go", "	if !a.tx.open {\n		a.end(walEnd)\n	}\n", "	a.end(walEnd)\n"}),
	unit("begin of a transaction confirmed as its end", "capture", "TestProgress", "begin .*-want",
		edit{"capture/tx.go", "	a.committed = m.time\n	a.reach(m.commit)\n", "	a.committed = m.time\n	a.end(m.commit)\n"}),
	unit("rows of other tables not counted", "capture", "TestContextOfAHeldTransaction/rows_of_other_tables_count", "changes .*-want",
		edit{"capture/tx.go", "	if err := a.count(); err != nil {\n		return err\n	}\n	data, values := body, &a.unused\n", "	if table.mapped {\n		if err := a.count(); err != nil {\n			return err\n		}\n	}\n	data, values := body, &a.unused\n"}),

	// Backfill.
	exactlyOnce("visibility rule always true", wrongTopics,
		edit{applyFile, "	return xid == 0 || pos.LSN < ", "	return true || pos.LSN < "}),
	exactlyOnce("visibility rule by LSN", wrongTopics,
		edit{applyFile, " pos.LSN < horizon || j.chunk.Snapshot.Visible(xid)\n", " pos.LSN < j.chunk.Watermark\n"}),
	unit("TRUNCATE no part of the visibility rule", "internal/bridge", "TestTruncateBehindASnapshot", "the table is empty",
		edit{applyFile, " && j.saw(horizon, t.pos, t.xid)\n", " && (true || t.xid == 0)\n"}),
	exactlyOnce("deletes of unknown keys not noted", wrongTopics,
		edit{"transform/row.go", "	if !s.entry.Exists() {\n		return s.note()\n	}\n	if s.change.OldFull {", "	if !s.entry.Exists() {\n		return nil\n	}\n	if s.change.OldFull {"}),
	exactlyOnce("not waiting for the horizon", wrongTopics,
		edit{"internal/bridge/backfill.go", "	if err := im.reader.Wait(ctx, xmax); err != nil {\n		return err\n	}\n", "	_ = xmax\n"}),
	unit("keys passed over not read again", "internal/bridge", "TestRepairLooksAgainAtWhatItPassedOver", "as it was once",
		edit{applyFile, "			return p.batch.Again(j.table.ID, key)\n", "			return nil\n"}),
	unit("large columns not in doubt during a repair", "internal/bridge", "TestRepairDoubtsWhatIsFilled", "as it was once",
		edit{applyFile, "	if len(s.repairs) == 0 {\n", "	if len(s.repairs) >= 0 {\n"}),
	unit("rows that are gone not looked up", "internal/bridge", "TestRebuiltStateIsCompared", "the row is gone",
		edit{"internal/bridge/run.go", "return r.Reconcile && r.Where == \"\"", "return false && r.Where == \"\""}),
	unit("a take-over not followed by a repair", "internal/bridge", "TestTakeOverIsCompared", "as it was once",
		edit{succession, "	return resume{from: s.slot.Confirmed, base: s.base, compare: true}, nil\n", "	return resume{from: s.slot.Confirmed, base: s.base}, nil\n"}),
	unit("a rebuilt state not followed by a repair", "internal/bridge", "TestRebuiltStateIsCompared", "the row is gone",
		edit{recovery, "	if f.rebuilt {\n		run, err", "	if f.rebuilt && f.folded < 0 {\n		run, err"}),

	// Fail-over, and copies that were put back.
	failover("the same system id is enough for a fail-over", "want a refusal",
		edit{succession, "	case capture.Diverged:\n", "	case capture.Diverged + 100:\n"}),
	unit("what was published told by the state alone", "internal/bridge", "TestFailoverLosesWhatTheStateNeverHad", "want a refusal|streams over the gap",
		edit{recovery, "	if now == known {\n", "	if now == known || known.timeline != 0 {\n"}),
	failover("the position stays beyond the fork", "nothing was published behind|"+wrongTopics,
		edit{succession, "s.fork, s.from = found.Branched, min(s.from, found.Branched)", "s.fork = found.Branched"}),
	failover("a repair begins where the slot is", "is told twice",
		edit{succession, "		from = max(from, s.fork)\n", "		from = max(from, 0)\n"}),
	unit("the slot compared with what was published", "internal/bridge", "TestSlotMadeAgainBelowWhatIsPublished", "the stream has lost",
		edit{succession, "	case s.slot.Confirmed <= s.from:\n", "	case s.slot.Confirmed <= max(s.from, s.newest.top):\n"}),
	unit("a lost commit that made no event is waited for", "internal/bridge", "TestFailoverLosesWhatMadeNoEvent", "confirmed .*, want|is not in the server's WAL",
		edit{succession, "		s.newest.commit, ok = commit{}, false\n", "		_ = ok\n"}),
	property("the newest commit need not come again", "TestEarlierCopy", "are told that never were|key .* is",
		edit{succession, "proof{met: s.comesAgain(b, r.newest.commit), known:", "proof{known:"}),
	property("what the state never met is passed over", "TestEarlierCopy", "key ",
		edit{proofFile, "	if lsn >= p.from && lsn > p.known.lsn {", "	if lsn >= p.from && lsn > max(p.known.lsn, p.to) {"}),

	// What the bridge remembers.
	history("a deleted key's version forgotten", "no newer version|crashes changed|got version",
		edit{"transform/row.go", "	t.emit(s, s.plan.names.deleted, data, nil)\n", "	t.emit(s, s.plan.names.deleted, data, nil)\n	s.entry.Version = 0\n"}),
	exactlyOnce("a noted key's version forgotten", "version|"+wrongTopics,
		edit{"transform/transform.go", "	s.entry = Entry{Version: s.entry.Version, Place: Place{Pos: s.change.Pos}, XID: s.change.XID}\n", "	s.entry = Entry{Place: Place{Pos: s.change.Pos}, XID: s.change.XID}\n"}),
	history("unchanged TOAST as null", "crashes changed|differs from the row",
		edit{"transform/update.go", "			t.values = append(t.values, nil)\n			continue\n", "			t.values = append(t.values, null)\n			continue\n"}),
	unit("unchanged TOAST read as null", "capture", "TestRecorded/toast", "-recorded",
		edit{"capture/value.go", "			tuple[i] = Value{Kind: Unchanged}\n", "			tuple[i] = Value{Kind: Null}\n"}),

	// Kafka, on a real one.
	unit("no fence", "sink", "TestFenceEndsFormerSession", "want a SessionError", noFence...),
	unit("a transactional id without the empty transaction", "sink", "TestFenceEndsFormerSession", "want a SessionError", noTransaction...),
	unit("fence of the events topic's partitions only", "sink", "TestFenceEndsFormerSession", "want a SessionError",
		edit{session, "	for _, t := range p.topics {\n		topic :=", "	for _, t := range p.topics[:1] {\n		topic :="},
		edit{session, "worst == nil && named < want {", "worst == nil && named < want/2 {"}),
	unit("new session on an unknown outcome", "sink", "TestFaultsOneBroker", `written at offset \d+ instead of|has version`,
		edit{"sink/publish.go", "		if !b.stamped {\n", newSession + "		if !b.stamped {\n"}),
	unit("tombstones that expire", "sink", "TestOpenWrongTopics/tombstones_that_expire", "want",
		edit{"sink/topics.go", "	keepTombstones = 3_155_760_000_000\n", "	keepTombstones = 86_400_000\n"}),
	unit("a table of another slot taken for none", "internal/bridge", "TestTableOfAnotherSlot", "want a Refusal",
		edit{"internal/bridge/bridge.go", "b.memory.stayed(b.mapping.Elsewhere())", "b.memory.stayed(nil)"}),
	unit("another writer not noticed", "sink", "TestAnotherWriter", "want a Refusal",
		edit{"sink/publish.go", "		if r.BaseOffset != b.base {", "		if r.BaseOffset < 0 {"}),
}

// newSession takes a new epoch, without a fold, where it is not known whether a
// batch was written.
const newSession = `		if b.doubtful {
			if s, err := p.initProducer(ctx, noProducer); err == nil {
				p.session.id, p.session.epoch, b.stamped = s.id, s.epoch, false
				for _, t := range p.topics {
					for i := range t.parts {
						t.parts[i].sequence = 0
					}
				}
			}
		}
`

// noTransaction leaves out what carries the epoch into the partitions.
var noTransaction = []edit{
	{session, "	if err := p.joinAll(ctx, s); err != nil {\n		return err\n	}\n", "	_ = p.joinAll\n"},
	{session, "	if err := p.abort(ctx, s); err != nil {\n		return err\n	}\n", "	_ = p.abort\n"},
}

// noFence takes a producer id without a transactional id.
var noFence = append([]edit{
	{session, "			TransactionalID:      p.transactionalID,\n", ""},
	{session, "			ProducerID:           own.id,\n			ProducerEpoch:        own.epoch,\n", "			ProducerID:           -1,\n			ProducerEpoch:        -1,\n"},
}, noTransaction...)

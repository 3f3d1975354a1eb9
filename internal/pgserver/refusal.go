package pgserver

// Refusal says what keeps Postgres from running here, and what to do.
type Refusal struct {
	Thing   string
	Problem string
	Cure    string
	Err     error // the cause, if there is one
}

// Error joins the parts.
func (r *Refusal) Error() string {
	text := r.Thing + ": " + r.Problem
	if r.Err != nil {
		text += ": " + r.Err.Error()
	}
	return text + "; " + r.Cure
}

// Unwrap returns the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// Refused reports that a repetition would fail the same way.
func (r *Refusal) Refused() bool { return true }

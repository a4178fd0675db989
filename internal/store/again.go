package store

// Again returns a record of the job with an id that has failed, and what its work is made of:
// the Letter of its end. It is the record of a new job that has this id and the attempts so
// far. The caller Resumes it with its work, and then Accepts or Withdraws it as any other;
// until it is accepted the job has failed, as before. ok is false if there is no such job, or
// somebody else is running it again.
func (s *Store) Again(id ID) (j *Job, letter Letter, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	letter, ok = s.kept.letters[id]
	if _, open := s.open[id]; open || !ok {
		return nil, Letter{}, false
	}
	r, _ := s.kept.find(id)
	j = &Job{ID: id, request: r.request, again: true, original: r.accepted, attempts: r.attempts, next: s.now(), outcome: Outcome{State: Queued}}
	if c := s.claims[r.key]; r.claimed && c != nil && c.job == id {
		j.claim = c
	}
	s.open[id] = j
	s.pending++
	return j, letter, true
}

// Discard forgets the job with an id if it has failed, and reports whether it has. Beside a
// journal that is written, but not waited for: after a crash it may be there once more.
func (s *Store) Discard(id ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.kept.find(id); !ok || r.outcome.State != Failed {
		return false
	}
	if _, again := s.open[id]; again {
		return false
	}
	s.discardLocked(id)
	if s.journal != nil {
		s.journal.Append(append([]byte{kindGone}, id[:]...), nil)
	}
	return true
}

func (s *Store) discardLocked(id ID) {
	r, ok := s.kept.remove(id)
	if c := s.claims[r.key]; ok && r.claimed && c != nil && c.job == id {
		delete(s.claims, r.key)
	}
}

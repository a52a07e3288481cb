package ovn

import "maps"

// Gone tells whether the database has no row of an owner any more. It is false while that is not known: before every source
// has said all that it wants, without a connection, and until a transaction has succeeded.
func (s *Store) Gone(owner string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, wanted := s.want.owners[owner]
	_, refused := s.failing[owner]
	_, unclear := s.failing[""] // rows of owners that nobody knows, this one perhaps
	if wanted || refused || unclear || s.full || s.pending > 0 || s.writing[owner] || s.writing[""] {
		return false
	}
	owners := s.dirty.owners()
	return !owners[owner] && !owners[""]
}

// written forgets what a transaction was writing.
func (s *Store) written() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = nil
}

// owners are those whose rows have to be compared; "" stands for rows whose owner nobody knows.
func (d *dirt) owners() map[string]bool {
	all := map[string]bool{}
	for owner := range maps.Values(d.rows) {
		all[owner] = true
	}
	for owner := range maps.Values(d.edges) {
		all[owner] = true
	}
	return all
}

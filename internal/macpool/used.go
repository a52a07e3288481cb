package macpool

import "math/bits"

const (
	wordBits = 6 // addresses are looked at in words of 64
	depth    = 8 // levels of words over 48 bits
	full     = ^uint64(0)
)

// used is a set of addresses that finds the next absent one in a bounded number of steps, however many are present. Level 0 has a
// bit for each address; a bit of a higher level says that the word below it is full.
type used [depth]map[uint64]uint64

func newUsed() *used {
	u := &used{}
	for level := range u {
		u[level] = map[uint64]uint64{}
	}
	return u
}

func split(at uint64) (word uint64, bit uint64) { return at >> wordBits, 1 << (at & (1<<wordBits - 1)) }

func (u *used) has(a Address) bool {
	word, bit := split(uint64(a))
	return u[0][word]&bit != 0
}

func (u *used) add(a Address) {
	at := uint64(a)
	for level := range u {
		word, bit := split(at)
		u[level][word] |= bit
		if u[level][word] != full {
			return
		}
		at = word
	}
}

func (u *used) remove(a Address) {
	at := uint64(a)
	for level := range u {
		word, bit := split(at)
		wasFull := u[level][word] == full
		if u[level][word] &^= bit; u[level][word] == 0 {
			delete(u[level], word)
		}
		if !wasFull {
			return
		}
		at = word
	}
}

// nextFree is the first absent address that is not below a. It may lie beyond the last address there is.
func (u *used) nextFree(a Address) Address {
	at, level := uint64(a), 0
	for ; level < depth; level++ {
		word, bit := split(at)
		if free := ^u[level][word] &^ (bit - 1); free != 0 {
			at = word<<wordBits | uint64(bits.TrailingZeros64(free))
			break
		}
		at = word + 1 // nothing left in this word: ask for the next one
	}
	for ; level > 0; level-- {
		at = at<<wordBits | uint64(bits.TrailingZeros64(^u[level-1][at]))
	}
	return Address(at)
}

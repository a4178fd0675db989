package line

// A job is in two chains: that of its level and that of its flow.
const (
	inLevel = iota
	inFlow
)

type links[T any] struct{ before, after *Item[T] }

// A chain is a doubly linked list, without an object of its own for each member.
type chain[T any] struct {
	front, back *Item[T]
	n           int
}

func (c *chain[T]) push(i *Item[T], which int) {
	i.links[which] = links[T]{before: c.back}
	if c.back == nil {
		c.front = i
	} else {
		c.back.links[which].after = i
	}
	c.back = i
	c.n++
}

func (c *chain[T]) remove(i *Item[T], which int) {
	at := i.links[which]
	if at.before == nil {
		c.front = at.after
	} else {
		at.before.links[which].after = at.after
	}
	if at.after == nil {
		c.back = at.before
	} else {
		at.after.links[which].before = at.before
	}
	i.links[which] = links[T]{}
	c.n--
}

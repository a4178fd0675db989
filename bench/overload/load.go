package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// Bounds of what one run may do, so that a slip of the hand is not an attack.
const (
	maxRate     = 20_000
	maxFor      = 10 * time.Minute
	maxRequests = 2_000_000
	maxClasses  = 16
	maxClients  = 100_000
	maxPatience = time.Minute
)

// A class is a part of the load: requests of one urgency and patience, from one
// or several clients.
type class struct {
	Name     string
	Share    float64       // of all requests, above 0 and up to 1
	Urgency  int           // sent as Priority: u=N; -1 sends no such header
	Clients  int           // that share the class equally; 0 sends no client header
	Patience time.Duration // from when the request is due; an answer after it is worth nothing
	Stays    bool          // the client waits on when its patience has ended
}

// client returns the name of the nth client of the class, or "" if it has none.
func (c class) client(n int32) string {
	switch c.Clients {
	case 0:
		return ""
	case 1:
		return c.Name
	}
	return fmt.Sprintf("%s-%d", c.Name, n+1)
}

const mixSyntax = "name:share% and then any of :u=0…7, :clients=N, :patience=D and :stays, as in urgent:10%:u=1,rest:90%"

// parseMix reads classes separated by commas. Their shares must sum to 100 %.
func parseMix(text string, patience time.Duration) ([]class, error) {
	var mix []class
	names := make(map[string]bool)
	total := 0.0
	for _, part := range strings.Split(text, ",") {
		c, err := parseClass(strings.TrimSpace(part), patience)
		if err != nil {
			return nil, err
		}
		if names[c.Name] {
			return nil, fmt.Errorf("two classes have the name %q; want one", c.Name)
		}
		names[c.Name] = true
		total += c.Share
		mix = append(mix, c)
	}
	if len(mix) > maxClasses {
		return nil, fmt.Errorf("%d classes; want at most %d", len(mix), maxClasses)
	}
	if total < 0.9999 || total > 1.0001 {
		return nil, fmt.Errorf("the shares sum to %.4g%%; want 100%%", 100*total)
	}
	return mix, nil
}

func parseClass(text string, patience time.Duration) (class, error) {
	fields := strings.Split(text, ":")
	if len(fields) < 2 || !validName(fields[0]) {
		return class{}, fmt.Errorf("class %q; want %s", text, mixSyntax)
	}
	c := class{Name: fields[0], Urgency: -1, Patience: patience}
	percent, err := strconv.ParseFloat(strings.TrimSuffix(fields[1], "%"), 64)
	if err != nil || !strings.HasSuffix(fields[1], "%") || !(percent > 0 && percent <= 100) {
		return class{}, fmt.Errorf("share %q of class %s; want a percentage above 0%%, and at most 100%%", fields[1], c.Name)
	}
	c.Share = percent / 100
	for _, option := range fields[2:] {
		if err := c.set(option); err != nil {
			return class{}, fmt.Errorf("class %s: %w", c.Name, err)
		}
	}
	return c, nil
}

func (c *class) set(option string) error {
	key, value, _ := strings.Cut(option, "=")
	var err error
	var ok bool
	var want string
	switch key {
	case "u":
		c.Urgency, err = strconv.Atoi(value)
		ok, want = 0 <= c.Urgency && c.Urgency <= 7, "u=0 to u=7"
	case "clients":
		c.Clients, err = strconv.Atoi(value)
		ok, want = 1 <= c.Clients && c.Clients <= maxClients, fmt.Sprintf("clients=1 to clients=%d", maxClients)
	case "patience":
		c.Patience, err = time.ParseDuration(value)
		ok, want = validPatience(c.Patience), fmt.Sprintf("patience=1ms to patience=%v", maxPatience)
	case "stays":
		c.Stays = true
		ok, want = option == key, "stays, without a value"
	default:
		want = mixSyntax
	}
	if err != nil || !ok {
		return fmt.Errorf("option %q; want %s", option, want)
	}
	return nil
}

func validPatience(d time.Duration) bool { return time.Millisecond <= d && d <= maxPatience }

// validName keeps names to what may stand in a header and in a table.
func validName(s string) bool {
	odd := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}
	return s != "" && len(s) <= 32 && !strings.ContainsFunc(s, odd)
}

// A phase is a stretch of the load with one rate.
type phase struct {
	rate  float64 // requests a second
	lasts time.Duration
}

// length returns how long the phases last together.
func length(phases []phase) time.Duration {
	var d time.Duration
	for _, p := range phases {
		d += p.lasts
	}
	return d
}

// checkBounds refuses a load that is beyond what one run may do.
func checkBounds(phases []phase) error {
	requests := 0.0
	for _, p := range phases {
		if !(p.rate > 0 && p.rate <= maxRate) {
			return fmt.Errorf("%g requests a second; want above 0, and at most %d", p.rate, maxRate)
		}
		requests += p.rate * p.lasts.Seconds()
	}
	if d := length(phases); d > maxFor {
		return fmt.Errorf("a load of %v; want at most %v", d, maxFor)
	}
	if requests > maxRequests {
		return fmt.Errorf("%.0f requests; want at most %d", requests, maxRequests)
	}
	return nil
}

// An arrival is one request of the schedule.
type arrival struct {
	due    time.Duration // from the start
	class  int32
	client int32
}

// schedule returns the requests of a load, which the seed decides and nothing
// that happens later. Arrivals are Poisson, or evenly spaced if constant is set.
func schedule(seed uint64, phases []phase, mix []class, constant bool) []arrival {
	random := rand.New(rand.NewPCG(seed, 0))
	var arrivals []arrival
	var begin time.Duration
	for _, p := range phases {
		at := 0.0
		for {
			gap := 1.0
			if !constant {
				gap = random.ExpFloat64()
			}
			// A Poisson process has no memory, so each phase can begin its own.
			at += gap
			due := time.Duration(at / p.rate * float64(time.Second))
			if due >= p.lasts {
				break
			}
			a := arrival{due: begin + due, class: pick(random, mix)}
			if n := mix[a.class].Clients; n > 1 {
				a.client = random.Int32N(int32(n))
			}
			arrivals = append(arrivals, a)
		}
		begin += p.lasts
	}
	return arrivals
}

// pick draws a class by the shares.
func pick(random *rand.Rand, mix []class) int32 {
	at := random.Float64()
	for i, c := range mix {
		if at -= c.Share; at < 0 {
			return int32(i)
		}
	}
	return int32(len(mix) - 1)
}

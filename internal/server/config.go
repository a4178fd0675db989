// Package server is what main.go wires besides the queue: the configuration,
// the demo's business, and an HTTP server that bounds its connections and stops
// in an order that loses nothing.
package server

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast"
	"holdfast/internal/budget"
	"holdfast/internal/flags"
	"holdfast/internal/resource"
)

// A Config is the configuration of the server.
type Config struct {
	Addr       string            // listen address
	Workers    int               // jobs that run at once; 0: paused
	Queue      int               // jobs that wait; 0: hand-over only
	Overflow   holdfast.Overflow // what happens beyond that
	JobTimeout time.Duration     // 0: none
	Drain      time.Duration     // time to stop; 0: without limit
	Linger     time.Duration     // of that, for ended jobs to be read
	MaxBody    int64             // bytes
	MaxConns   int               // open connections
	MaxWorkers int               // that the operator may change Workers to, if it is not more itself
	Files      int               // limit of open files
	LogJobs    bool              // log each job that has ended
	Admin      string            // listen address of the operator; empty: none
	AdminToken string            // that the operator needs; empty: none
	AdminSet   bool              // Admin is not the default

	MaxResponse int64         // bytes of a job's response
	Retain      time.Duration // that ended jobs are kept
	RetainJobs  int
	RetainBytes int64
	Patience    time.Duration // of clients; 0: learned; negative: without end
	Upstream    *url.URL      // that the gateway serves; nil: no gateway
	PublicURL   string        // where clients find the public listener's root; empty: there
	CORSOrigins string        // whose pages may use it, joined by commas
	MaxMemory   int64         // bytes held for clients in all

	UpstreamTimeout time.Duration // that the upstream has for a request; 0: none
	UpstreamIdle    time.Duration // that a connection to it is kept; 0: not at all
	Abandon         bool          // hang up on the upstream when a job ends early
	TrustedProxies  string        // as flag; Proxies has them parsed

	TrustPriority bool   // believe the Priority header
	ClientKey     string // the header that names the client, or "address"; empty: all are one
	ClientPlaces  int    // that one client may hold; 0: no limit

	Attempts   int           // how often a job is started in all
	RetryOn    string        // as flag; Retry has it parsed
	MaxDelay   time.Duration // how far ahead a client may say that a job is to run; 0: it may not
	MaxDelayed int           // jobs that wait for their time

	Data string // the folder of a command whose jobs outlive the process
	Sync bool   // there, wait for the disk before a job is accepted

	Cluster     string // the name of the cluster that this process is a node of; empty: none
	Node        string // its name in the cluster
	ClusterAddr string // where the logs of the other nodes reach this one's
	Peers       string // of all nodes, joined by commas
	NodeAddr    string // where the other nodes reach this one
	SecretFile  string // that all nodes have
	NATS        string // the URL of external servers, in place of ClusterAddr and Peers
	NATSCreds   string // a file with credentials for them
	NATSSystem  string // their URL with a user of the system account
}

// Proxies returns the networks of the proxies whose X-Forwarded-* are believed.
func (c Config) Proxies() []netip.Prefix {
	prefixes, err := parsePrefixes(c.TrustedProxies)
	if err != nil {
		panic(err) // the flag's Set has seen it
	}
	return prefixes
}

// Dispatcher returns the configuration of the dispatcher.
func (c Config) Dispatcher() holdfast.Config {
	return holdfast.Config{Workers: c.Workers, Queue: c.Queue, Overflow: c.Overflow, JobTimeout: c.JobTimeout, ClientPlaces: c.ClientPlaces}
}

// Jobs returns the configuration of the job resource.
func (c Config) Jobs() holdfast.JobsConfig {
	return holdfast.JobsConfig{MaxBody: c.MaxBody, MaxResponse: min(c.MaxResponse, c.RetainBytes/2), Retain: c.Retain, RetainJobs: c.RetainJobs, RetainBytes: c.RetainBytes, MaxMemory: c.MaxMemory, PublicURL: c.PublicURL, Patience: c.Patience, Classify: classifier(c), Retry: c.Retry(), MaxDelay: cmp.Or(c.MaxDelay, -1), MaxDelayed: c.MaxDelayed}
}

// Retry returns which jobs are tried again.
func (c Config) Retry() holdfast.Retry {
	on, _, err := parseRetryOn(c.RetryOn)
	if err != nil {
		panic(err) // the flag's Set has seen it
	}
	return holdfast.Retry{Attempts: c.Attempts, On: on}
}

// RetryUnreached reports whether a job is tried again if the upstream was not reached.
func (c Config) RetryUnreached() bool {
	_, connect, _ := parseRetryOn(c.RetryOn)
	return connect
}

const wantDuration = "a duration of 0 or more, such as 500ms, 30s or 1h"

// An option is one flag with its environment variable.
type option struct {
	name, env string
	value     flag.Value
	byDefault string
	usage     string
}

// options are those that set the fields of c.
func (c *Config) options() []option {
	connLimit, connDefault := connsOf(c.Files, 0)
	return []option{
		{"addr", "ADDR", (*text)(&c.Addr), ":8099", "listen on `host:port`"},
		{"workers", "MAX_WORKERS", &number{&c.Workers, 0, 1_000_000}, "100", "run `n` jobs at once; 0 starts paused"},
		{"queue", "MAX_QUEUE", &number{&c.Queue, 0, 10_000_000}, "200", "let `n` jobs wait; 0 accepts a job only if a worker is idle"},
		{"overflow", "OVERFLOW", &overflow{&c.Overflow}, "block", "when all that is taken, apply `policy` block, reject or drop-oldest"},
		{"job-timeout", "JOB_TIMEOUT", &flags.Duration{D: &c.JobTimeout, Want: wantDuration}, "0", "cancel a job that runs for longer than `d`; 0 never does"},
		{"patience", "PATIENCE", (*orAuto)(&c.Patience), "auto", "refuse at once what cannot be answered within `d`; 0 never does, auto learns d for requests that wait from when clients leave"},
		{"trust-priority", "TRUST_PRIORITY", (*flags.Boolean)(&c.TrustPriority), "false", "serve the more urgent first, as the header Priority: u=0 (most urgent) to u=7 says; 3 if it says nothing"},
		{"client-key", "CLIENT_KEY", (*clientKey)(&c.ClientKey), "", "let clients share the workers equally, whatever each of them sends; `who` is the header that names the client, such as X-Api-Key, or address"},
		{"client-places", "CLIENT_PLACES", &number{&c.ClientPlaces, 0, 11_000_000}, "0", "answer 429 to a client that holds `n` places, running, queued or waiting; 0 is no limit. Without -client-key clients are told apart by address"},
		{"drain", "DRAIN_TIMEOUT", &flags.Duration{D: &c.Drain, Want: wantDuration}, "30s", "after a signal let jobs finish for at most `d`; 0 waits without limit"},
		{"linger", "LINGER", &flags.Duration{D: &c.Linger, Want: wantDuration}, "1s", "after the last job go on answering for at most `d`, within -drain, while ended jobs are unread"},
		{"max-body", "MAX_BODY", (*Size)(&c.MaxBody), "1MiB", "refuse a request body of more than `size`"},
		{"max-conns", "MAX_CONNS", &number{&c.MaxConns, 1, connLimit}, strconv.Itoa(connDefault), "hold at most `n` connections open; the default follows the limit of open files, and leaves one for each worker with -upstream"},
		{"max-workers", "MAX_RESIZE", &number{&c.MaxWorkers, 1, 1_000_000}, "10000", "let the operator change -workers to at most `n`, or to what it was at the start"},
		{"max-response", "MAX_RESPONSE", (*Size)(&c.MaxResponse), "8MiB", "keep a response of at most `size`, and half of -retain-bytes; a job with a larger one fails"},
		{"retain", "RETAIN", &flags.Duration{D: &c.Retain, Want: "a duration above 0, such as 500ms, 30s or 1h", Least: 1}, "1h", "keep ended jobs for `d`"},
		{"retain-jobs", "RETAIN_JOBS", &number{&c.RetainJobs, 1, 10_000_000}, "100000", "keep at most `n` ended jobs"},
		{"retain-bytes", "RETAIN_BYTES", &atLeast{(*Size)(&c.RetainBytes), 64 << 10}, "256MiB", "keep ended jobs that take at most `size`"},
		{"max-memory", "MAX_MEMORY", &atLeast{(*Size)(&c.MaxMemory), 1 << 20}, mebibytes(budget.Default()), "hold at most `size` for clients, then refuse; the default is half of what the machine, the control group or GOMEMLIMIT allows"},
		{"upstream", "UPSTREAM", upstream{&c.Upstream}, "", "be a gateway to the service at `url`: /sync/… queues and answers, /async/… answers 202"},
		{"public-url", "PUBLIC_URL", (*baseURL)(&c.PublicURL), "", "tell clients URLs that begin with `url`, such as https://host/queue"},
		{"cors-origins", "CORS_ORIGINS", (*origins)(&c.CORSOrigins), "", "let pages of these `origins`, joined by commas, use the public listener"},
		{"upstream-timeout", "UPSTREAM_TIMEOUT", &flags.Duration{D: &c.UpstreamTimeout, Want: wantDuration}, "5m", "give the upstream `d` for a request, then hang up; 0 waits without limit"},
		{"upstream-idle", "UPSTREAM_IDLE", &flags.Duration{D: &c.UpstreamIdle, Want: wantDuration}, "4s", "keep an idle connection to the upstream for `d`, less than the upstream does; 0 keeps none"},
		{"abandon", "ABANDON", (*flags.Boolean)(&c.Abandon), "false", "hang up on the upstream when a client leaves or its job ends early; for one that notices"},
		{"trusted-proxies", "TRUSTED_PROXIES", (*proxies)(&c.TrustedProxies), "", "believe the X-Forwarded-* of the proxies in `networks`, such as 10.0.0.0/8,::1"},
		{"admin", "ADMIN_ADDR", (*text)(&c.Admin), "127.0.0.1:8100", "listen for the operator on `host:port`; empty is off, and one that is not loopback needs a token"},
		{"admin-token-file", "ADMIN_TOKEN_FILE", (*tokenFile)(&c.AdminToken), "", "ask the operator for the token in `file`, as Bearer or as the password of HTTP Basic"},
		{"attempts", "ATTEMPTS", &number{&c.Attempts, 1, 1000}, "3", "start an asynchronous job at most `n` times, if it panics, answers as -retry-on says, or, with stored jobs, the process dies while it runs; 1 never tries again"},
		{"retry-on", "RETRY_ON", (*retryOn)(&c.RetryOn), "", "try an asynchronous job again that answers with one of these `statuses`, 400 to 599, joined by commas; connect stands for an upstream that was not reached"},
		{"max-delay", "MAX_DELAY", &flags.Duration{D: &c.MaxDelay, Want: wantDuration}, "24h", "let clients say up to `d` ahead when a job is to run, by Run-At or Delay; 0 refuses both"},
		{"max-delayed", "MAX_DELAYED", &number{&c.MaxDelayed, 1, 10_000_000}, "10000", "let `n` jobs wait for the time that their clients have named, and as many for their next attempt, then refuse what may have to"},
		{"log-jobs", "LOG_JOBS", (*flags.Boolean)(&c.LogJobs), "false", "log each job that has ended"},
	}
}

// durableOptions are those of a command whose jobs outlive the process.
func (c *Config) durableOptions() []option {
	return []option{
		{"data", "DATA", (*folder)(&c.Data), "data", "store jobs in `folder`, which one process may own"},
		{"sync", "SYNC", (*flags.Boolean)(&c.Sync), "true", "answer 202 when the job is on disk; without it a power failure loses the last jobs that were accepted, and a crash of the process still none"},
		{"cluster", "CLUSTER", (*text)(&c.Cluster), "", "be a node of the cluster `name`: the nodes share their jobs"},
		{"node", "NODE", (*text)(&c.Node), "", "be the node `name` there, which no other one is"},
		{"node-addr", "NODE_ADDR", (*text)(&c.NodeAddr), "", "let the other nodes hand over jobs and requests at `host:port`, which they can reach"},
		{"cluster-addr", "CLUSTER_ADDR", (*text)(&c.ClusterAddr), "", "copy the log from and to the other nodes at `host:port`, which they can reach"},
		{"peers", "PEERS", (*text)(&c.Peers), "", "find the other nodes by their -cluster-addr: `addresses` with commas between them"},
		{"cluster-secret-file", "CLUSTER_SECRET_FILE", (*text)(&c.SecretFile), "", "encrypt what nodes send each other by the secret in `file`, which all nodes have, and let nobody else in"},
		{"nats", "NATS", (*text)(&c.NATS), "", "keep the log at the NATS servers at `url`, in place of -cluster-addr, -peers and -data"},
		{"nats-creds", "NATS_CREDS", (*text)(&c.NATSCreds), "", "connect to them with the credentials in `file`"},
		{"nats-system", "NATS_SYSTEM", (*text)(&c.NATSSystem), "", "ask them at `url`, with a user of their system account, whether they sync each write"},
	}
}

// ParseDurableConfig is ParseConfig for a command whose jobs outlive the process.
func ParseDurableConfig(args []string, getenv func(string) string, version string, out io.Writer) (Config, error) {
	c := Config{Files: openFiles()}
	return c.parse(append(c.options(), c.durableOptions()...), args, getenv, version, out)
}

// ParseConfig reads the configuration from the arguments, then the environment,
// then the defaults; an empty variable counts as unset. It returns
// flag.ErrHelp after -h and an empty Config after -version; both have then been
// written to out. Any other error names what is wrong and what is allowed.
func ParseConfig(args []string, getenv func(string) string, version string, out io.Writer) (Config, error) {
	c := Config{Files: openFiles()}
	return c.parse(c.options(), args, getenv, version, out)
}

// parse sets the fields of c by options.
func (c *Config) parse(options []option, args []string, getenv func(string) string, version string, out io.Writer) (Config, error) {
	set := flag.NewFlagSet("holdfast", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	showVersion := set.Bool("version", false, "")
	for _, s := range options {
		if s.byDefault != "" {
			if err := s.value.Set(s.byDefault); err != nil {
				panic(fmt.Sprintf("default of -%s: %v", s.name, err))
			}
		}
		set.Var(s.value, s.name, s.usage)
	}
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			writeUsage(out, version, set, options)
		}
		return Config{}, err
	}
	if set.NArg() > 0 {
		return Config{}, fmt.Errorf("argument %q; want flags only, see -h", set.Arg(0))
	}
	if *showVersion {
		fmt.Fprintf(out, "holdfast %s\n", version)
		return Config{}, nil
	}
	given, err := fromEnvironment(set, options, getenv)
	if err != nil {
		return Config{}, err
	}
	if err := c.complete(given); err != nil {
		return Config{}, err
	}
	return *c, nil
}

func writeUsage(out io.Writer, version string, set *flag.FlagSet, options []option) {
	fmt.Fprintf(out, "Holdfast %s: POST /aaa works at once, POST /bbb queues the work.\n\n", version)
	program := "go run main.go"
	if set.Lookup("data") != nil {
		program = "go -C durable run ./cmd/holdfast"
	}
	fmt.Fprintf(out, "Usage: %[1]s [flags]\n       %[1]s plan -h, to find out how many workers and how long a queue\n", program)
	if set.Lookup("data") != nil {
		fmt.Fprintf(out, "       %s check -data folder, to find out what is stored there\n", program)
	}
	fmt.Fprintln(out)
	for _, s := range options {
		arg, text := flag.UnquoteUsage(set.Lookup(s.name))
		fmt.Fprintf(out, "  %-20s %s (%s; default %s)\n", "-"+s.name+" "+arg, text, s.env, cmp.Or(s.byDefault, "none"))
	}
	fmt.Fprintf(out, "  %-20s print the version\n\n", "-version")
	fmt.Fprintf(out, "A flag goes before its environment variable, that before the default.\nSizes are bytes or end in KiB, MiB or GiB; durations are like 30s, 5m or 1h30m.\n")
}

// fromEnvironment sets what the arguments did not, and returns the names of the options
// that were set by either.
func fromEnvironment(set *flag.FlagSet, options []option, getenv func(string) string) (map[string]bool, error) {
	given := make(map[string]bool)
	set.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for _, s := range options {
		value := getenv(s.env)
		if value == "" || given[s.name] {
			continue
		}
		if err := s.value.Set(value); err != nil {
			return nil, fmt.Errorf("invalid value %q for %s: %w", value, s.env, err)
		}
		given[s.name] = true
	}
	return given, nil
}

// complete sets what follows from several options, and checks them together.
func (c *Config) complete(given map[string]bool) error {
	if !given["max-conns"] {
		_, c.MaxConns = connsOf(c.Files, upstreamConns(c.Upstream, c.Workers))
	}
	if err := c.fit(c.Workers); err != nil {
		return err
	}
	if c.ClientPlaces > 0 && c.ClientKey == "" {
		c.ClientKey = byAddress
	}
	if err := c.checkCluster(); err != nil {
		return err
	}
	c.AdminSet = given["admin"]
	if c.Admin == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(c.Admin)
	if err != nil {
		return fmt.Errorf("-admin is %q; want host:port, or nothing for no admin listener", c.Admin)
	}
	if !loopback(host) && c.AdminToken == "" {
		return fmt.Errorf("-admin %s can be reached from other machines; want -admin-token-file, or a host such as 127.0.0.1 or localhost", c.Admin)
	}
	return nil
}

// checkCluster checks what a node of a cluster needs.
func (c *Config) checkCluster() error {
	all := []struct{ name, value string }{
		{"-node", c.Node}, {"-node-addr", c.NodeAddr}, {"-cluster-secret-file", c.SecretFile},
		{"-cluster-addr", c.ClusterAddr}, {"-peers", c.Peers}, {"-nats", c.NATS}, {"-nats-creds", c.NATSCreds}, {"-nats-system", c.NATSSystem},
	}
	for i, s := range all {
		switch {
		case c.Cluster == "" && s.value != "":
			return fmt.Errorf("%s is %q without -cluster; want the name of the cluster too", s.name, s.value)
		case c.Cluster != "" && s.value == "" && (i < 3 || i < 5 && c.NATS == ""):
			return fmt.Errorf("-cluster %s comes without %s; want -node, -node-addr, -cluster-secret-file, and either -cluster-addr and -peers or -nats", c.Cluster, s.name)
		}
	}
	switch {
	case c.NATS != "" && (c.ClusterAddr != "" || c.Peers != ""):
		return errors.New("-nats comes with -cluster-addr or -peers; want the log at the NATS servers or at the nodes, not both")
	case c.NATS == "" && (c.NATSCreds != "" || c.NATSSystem != ""):
		return errors.New("-nats-creds or -nats-system comes without -nats; want the URL of the NATS servers too")
	}
	return nil
}

// mebibytes returns the text of a size, rounded down, and at least one.
func mebibytes(n int64) string {
	size := Size(max(n>>20, 1) << 20)
	return size.String()
}

// loopback reports whether what listens at a host can be reached from this machine only.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// AdminHost returns the name by which the admin listener is reached, or "".
func (c Config) AdminHost() string {
	host, _, _ := net.SplitHostPort(c.Admin)
	return host
}

// Listen listens on a TCP address, for connections of one path: of those that
// Multipath TCP joins, which Go offers by itself, the system does not say whether
// the other end is there.
func Listen(addr string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	return config.Listen(context.Background(), "tcp", addr)
}

// ListenAdmin returns the admin listener, or nil if there is to be none, or if the
// default address is taken, which is logged: a second server on a machine should
// start like the first one.
func (c Config) ListenAdmin(log *slog.Logger) (net.Listener, error) {
	if c.Admin == "" {
		return nil, nil
	}
	l, err := Listen(c.Admin)
	if err != nil && !c.AdminSet && errors.Is(err, syscall.EADDRINUSE) {
		log.Warn("no admin listener: its default address is taken; -admin sets another", "addr", c.Admin)
		return nil, nil
	}
	return l, err
}

type text string

func (t *text) String() string     { return string(*t) }
func (t *text) Set(s string) error { *t = text(s); return nil }

// A folder is the flag of one that must be named.
type folder string

func (f *folder) String() string { return string(*f) }

func (f *folder) Set(s string) error {
	if s == "" {
		return errors.New("want a folder")
	}
	*f = folder(s)
	return nil
}

// An orAuto is a duration, or auto, which is 0. Without end it is negative.
type orAuto time.Duration

func (v *orAuto) String() string {
	switch d := time.Duration(*v); {
	case d == 0:
		return "auto"
	case d < 0:
		return "0"
	default:
		return d.String()
	}
}

func (v *orAuto) Set(s string) error {
	d := time.Duration(0)
	if s != "auto" {
		set := flags.Duration{D: &d, Want: "auto, or a duration of 0 or more, such as 500ms or 2s"}
		if err := set.Set(s); err != nil {
			return err
		}
		if d == 0 {
			d = -1
		}
	}
	*v = orAuto(d)
	return nil
}

// A tokenFile is set by the name of the file that has the token.
type tokenFile string

func (v *tokenFile) String() string { return "" }

func (v *tokenFile) Set(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxToken+1))
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(text))
	unprintable := func(c rune) bool { return c <= ' ' || c > '~' }
	if len(token) < minToken || len(text) > maxToken || strings.ContainsFunc(token, unprintable) {
		return fmt.Errorf("the file has %d bytes; want one token of %d to %d letters, digits or signs, without a space", len(text), minToken, maxToken)
	}
	*v = tokenFile(token)
	return nil
}

// The length of a token in bytes. A shorter one can be guessed.
const (
	minToken = 16
	maxToken = 4096
)

type number struct {
	n           *int
	least, most int
}

func (v *number) String() string {
	if v.n == nil {
		return ""
	}
	return strconv.Itoa(*v.n)
}

func (v *number) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < v.least || n > v.most {
		return fmt.Errorf("want a whole number from %d to %d", v.least, v.most)
	}
	*v.n = n
	return nil
}

type overflow struct{ *holdfast.Overflow }

func (v *overflow) String() string {
	if v.Overflow == nil {
		return ""
	}
	return v.Overflow.String()
}

func (v *overflow) Set(s string) error {
	if v.UnmarshalText([]byte(s)) != nil {
		return errors.New("want block, reject or drop-oldest")
	}
	return nil
}

type upstream struct{ url **url.URL }

func (v upstream) String() string {
	if v.url == nil || *v.url == nil {
		return ""
	}
	return (*v.url).String()
}

func (v upstream) Set(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("want http://host:port or https://host:port, perhaps with a path")
	}
	*v.url = u
	return nil
}

type baseURL string

func (v *baseURL) String() string { return string(*v) }

func (v *baseURL) Set(s string) error {
	base, err := resource.ParseBase(s)
	if err == nil {
		*v = baseURL(base)
	}
	return err
}

// proxies are networks, as a list with commas between them.
type proxies string

func (v *proxies) String() string { return string(*v) }

func (v *proxies) Set(s string) error {
	if _, err := parsePrefixes(s); err != nil {
		return err
	}
	*v = proxies(s)
	return nil
}

// parsePrefixes reads a list of networks; an address is a network of its own.
func parsePrefixes(s string) (all []netip.Prefix, err error) {
	if s == "" {
		return nil, nil
	}
	for text := range strings.SplitSeq(s, ",") {
		text = strings.TrimSpace(text)
		prefix, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); addrErr == nil && addr.Zone() == "" {
			prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil || prefix != prefix.Masked() {
			return nil, errors.New("want networks or addresses with commas between them, such as 10.0.0.0/8,192.0.2.1,fd00::/8")
		}
		if addr := prefix.Addr(); addr.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
		}
		all = append(all, prefix)
	}
	return all, nil
}

// A retryOn is a list of statuses and of the word connect.
type retryOn string

func (v *retryOn) String() string { return string(*v) }

func (v *retryOn) Set(s string) error {
	if _, _, err := parseRetryOn(s); err != nil {
		return err
	}
	*v = retryOn(s)
	return nil
}

func parseRetryOn(s string) (statuses []int, connect bool, err error) {
	if s == "" {
		return nil, false, nil
	}
	for text := range strings.SplitSeq(s, ",") {
		text = strings.TrimSpace(text)
		status, err := strconv.Atoi(text)
		switch {
		case text == "connect":
			connect = true
		case err != nil || status < 400 || status > 599:
			return nil, false, errors.New("want statuses from 400 to 599, and connect, with commas between them, such as connect,429,503")
		default:
			statuses = append(statuses, status)
		}
	}
	return statuses, connect, nil
}

// A Size is a number of bytes, at least 1. Its text form is a whole number,
// followed by KiB, MiB or GiB or by nothing.
type Size int64

var units = []struct {
	suffix string
	bytes  int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"", 1}}

// String returns the size in the greatest unit in which it is a whole number.
func (v *Size) String() string {
	for _, u := range units {
		if int64(*v)%u.bytes == 0 && *v != 0 {
			return strconv.FormatInt(int64(*v)/u.bytes, 10) + u.suffix
		}
	}
	return "0"
}

// Set sets the size from its text form; a text that is none changes nothing.
func (v *Size) Set(s string) error {
	for _, u := range units {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || n == 0 || int64(n) > math.MaxInt64/u.bytes {
			break
		}
		*v = Size(int64(n) * u.bytes)
		return nil
	}
	return errors.New("want a size of at least 1 byte, such as 65536, 64KiB or 1MiB")
}

// atLeast is a Size with a lower bound of its own.
type atLeast struct {
	*Size
	least Size
}

func (v *atLeast) String() string {
	if v.Size == nil {
		return ""
	}
	return v.Size.String()
}

// Set is that of the Size.
func (v *atLeast) Set(s string) error {
	var size Size
	if size.Set(s) != nil || size < v.least {
		return fmt.Errorf("want a size of at least %v, such as 1MiB or 256MiB", &v.least)
	}
	*v.Size = size
	return nil
}

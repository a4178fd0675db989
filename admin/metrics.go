package admin

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/histogram"
	"holdfast/internal/metrics"
)

// serveMetrics answers GET /metrics in Prometheus' text exposition format. The text
// is made here, and not by Prometheus' own package, since the root module has no
// dependency.
func (h *Handler) serveMetrics(w http.ResponseWriter, r *http.Request) {
	snapshot := metrics.Take(h.config.Dispatcher, h.config.Jobs)
	families := metrics.Families(snapshot.Jobs != nil)
	if h.config.Log != nil {
		snapshot.Log = new(metrics.Log(h.config.Log()))
		families = slices.Concat(families, metrics.OfLog())
	}
	if h.config.Cluster != nil {
		snapshot.Cluster = clusterOf(h.config.Cluster())
		families = slices.Concat(families, metrics.OfCluster())
	}
	var text bytes.Buffer
	for _, f := range families {
		writeFamily(&text, &f, f.Samples(snapshot))
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write(text.Bytes())
}

func clusterOf(s ClusterStats) *metrics.Cluster {
	c := &metrics.Cluster{Term: s.Term}
	for _, n := range s.Nodes {
		c.Nodes = append(c.Nodes, metrics.Node{Name: n.Name, Workers: n.Workers, Running: n.Running, Silent: n.Silent})
	}
	return c
}

// The characters that the format escapes in a HELP line, and in a label's value.
var (
	helpEscaper  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func writeFamily(text *bytes.Buffer, f *metrics.Family, samples []metrics.Sample) {
	fmt.Fprintf(text, "# HELP %s %s\n# TYPE %s %s\n", f.Name, helpEscaper.Replace(f.Help), f.Name, f.Kind)
	for _, s := range samples {
		switch {
		case f.Kind == metrics.Histogram:
			writeHistogram(text, f.Name, s.Histogram)
		case f.Label == "":
			fmt.Fprintf(text, "%s %s\n", f.Name, number(s.Value))
		default:
			fmt.Fprintf(text, "%s{%s=\"%s\"} %s\n", f.Name, f.Label, labelEscaper.Replace(s.LabelValue), number(s.Value))
		}
	}
}

func writeHistogram(text *bytes.Buffer, name string, h *histogram.Histogram) {
	for _, b := range metrics.Buckets(h) {
		fmt.Fprintf(text, "%s_bucket{le=\"%s\"} %d\n", name, number(b.Bound), b.Count)
	}
	fmt.Fprintf(text, "%s_bucket{le=\"+Inf\"} %d\n", name, h.Count)
	fmt.Fprintf(text, "%s_sum %s\n%s_count %d\n", name, number(h.Sum/float64(time.Second)), name, h.Count)
}

// number returns the shortest text that reads back as v.
func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

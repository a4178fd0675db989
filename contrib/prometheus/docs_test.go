package prometheus

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"holdfast"
)

// families returns all exported metrics, by name.
func families(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	d := newDispatcher(t, holdfast.Config{Workers: 100, Queue: 200})
	defer d.Shutdown(t.Context())
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(NewCollector(d, newJobs(t, d, holdfast.JobsConfig{})))
	list, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*dto.MetricFamily{}
	for _, f := range list {
		byName[f.GetName()] = f
	}
	return byName
}

// label returns the name and the values of the family's label, if it has one.
func label(f *dto.MetricFamily) (name string, values []string) {
	for _, m := range f.Metric {
		for _, l := range m.Label {
			name, values = l.GetName(), append(values, l.GetValue())
		}
	}
	slices.Sort(values)
	return name, values
}

func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	exported := families(t)
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|\n"), "|")
		for i, cell := range cells {
			cells[i] = strings.TrimSpace(cell)
		}
		if len(cells) != 5 {
			t.Errorf("%d cells: %s", len(cells), line)
			continue
		}
		name, kind, unit, what := strings.Trim(cells[0], "`"), cells[1], cells[2], cells[4]
		f := exported[name]
		if f == nil {
			t.Errorf("%s is not exported, or is documented twice", name)
			continue
		}
		delete(exported, name)
		if want := strings.ToLower(f.GetType().String()); kind != want {
			t.Errorf("%s is a %s, not a %s", name, want, kind)
		}
		words := strings.Split(name, "_")
		if !slices.Contains(words, unit) || slices.Contains(words, "seconds") != (unit == "seconds") {
			t.Errorf("%s is not in %s", name, unit)
		}
		if what != f.GetHelp() {
			t.Errorf("%s: %q, but its help is %q", name, what, f.GetHelp())
		}
		labelName, labels, _ := strings.Cut(cells[3], ": ")
		var values []string
		if labels != "" {
			values = strings.Split(labels, ", ")
		}
		slices.Sort(values)
		if wantName, want := label(f); strings.Trim(labelName, "`") != wantName || !slices.Equal(values, want) {
			t.Errorf("%s has label %q: %q, not %s", name, wantName, want, cells[3])
		}
	}
	for name := range exported {
		t.Errorf("%s is exported but not documented", name)
	}
}

// notShown are the metrics that the dashboard leaves out.
var notShown = []string{
	"holdfast_open_jobs",                                                      // they are included in queued and running
	"holdfast_delayed_jobs", "holdfast_retries_total", "holdfast_failed_jobs", // the jobs page shows them
	"holdfast_overflow_policy", // a setting; blocked, refused and dropped show its effect
}

var (
	metricName = regexp.MustCompile(`holdfast_\w+`)
	grouping   = regexp.MustCompile(`by \((\w+)\) \(rate\((holdfast_\w+)`)
)

func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	type source struct{ Type, UID string }
	var dashboard struct {
		Title         string
		SchemaVersion int
		Templating    struct {
			List []struct {
				Name, Type, Definition string
				Datasource             source
			}
		}
		Panels []struct {
			ID         int
			Title      string
			Datasource source
			Targets    []struct {
				RefID, Expr, LegendFormat string
				Datasource                source
			}
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.Title == "" || dashboard.SchemaVersion < 39 || len(dashboard.Panels) == 0 {
		t.Fatalf("not a dashboard of a recent Grafana: %+v", dashboard)
	}

	exported := families(t)
	used := map[string]bool{}
	// family returns the family of the metric in a query, and whether its values
	// only grow.
	family := func(metric string) (f *dto.MetricFamily, grows bool) {
		if f := exported[metric]; f != nil && f.GetType() != dto.MetricType_HISTOGRAM {
			return f, f.GetType() == dto.MetricType_COUNTER
		}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			name, ok := strings.CutSuffix(metric, suffix)
			if f := exported[name]; ok && f != nil && f.GetType() == dto.MetricType_HISTOGRAM {
				return f, true
			}
		}
		return nil, false
	}

	chosen := source{"prometheus", "${datasource}"}
	variables := map[string]string{}
	for _, v := range dashboard.Templating.List {
		variables[v.Name] = v.Type
		if v.Type == "query" && v.Datasource != chosen {
			t.Errorf("variable %s has data source %v", v.Name, v.Datasource)
		}
		for _, metric := range metricName.FindAllString(v.Definition, -1) {
			if f, _ := family(metric); f == nil {
				t.Errorf("variable %s queries %s, which is not exported", v.Name, metric)
			}
		}
	}
	if variables["datasource"] != "datasource" || variables["instance"] != "query" || variables["job"] != "query" {
		t.Errorf("variables are %v", variables)
	}

	ids := map[int]bool{}
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.Datasource != chosen || len(p.Targets) == 0 {
			t.Errorf("panel %q: id %d, data source %v, %d targets", p.Title, p.ID, p.Datasource, len(p.Targets))
		}
		ids[p.ID] = true
		for _, q := range p.Targets {
			if q.RefID == "" || q.Datasource != chosen {
				t.Errorf("%s: id %q, data source %v", q.Expr, q.RefID, q.Datasource)
			}
			if strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") {
				t.Errorf("%s: unbalanced parentheses", q.Expr)
			}
			at := metricName.FindAllStringIndex(q.Expr, -1)
			if len(at) == 0 {
				t.Errorf("%s queries none of our metrics", q.Expr)
			}
			for _, i := range at {
				metric := q.Expr[i[0]:i[1]]
				f, grows := family(metric)
				if f == nil {
					t.Errorf("%s: %s is not exported", q.Expr, metric)
					continue
				}
				used[f.GetName()] = true
				if grows != strings.HasSuffix(q.Expr[:i[0]], "rate(") {
					t.Errorf("%s: rate must be used for all counters, and only for them", q.Expr)
				}
				if !strings.HasPrefix(q.Expr[i[1]:], `{job=~"$job", instance=~"$instance"}`) {
					t.Errorf("%s: %s is not restricted to the chosen instances", q.Expr, metric)
				}
			}
			for _, m := range grouping.FindAllStringSubmatch(q.Expr, -1) {
				by, metric := m[1], m[2]
				if by == "le" && strings.HasSuffix(metric, "_bucket") {
					continue
				}
				f, _ := family(metric)
				if name, _ := label(f); name != by || !strings.Contains(q.LegendFormat, "{{"+by+"}}") {
					t.Errorf("%s: %s has label %q; legend %q", q.Expr, metric, name, q.LegendFormat)
				}
			}
		}
	}
	for name := range exported {
		if used[name] == slices.Contains(notShown, name) {
			t.Errorf("%s: queried is %v, listed in notShown is %v", name, used[name], !used[name])
		}
	}
}

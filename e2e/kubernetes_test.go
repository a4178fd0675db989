package e2e

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"holdfast/internal/proctest"
	"holdfast/internal/server"
)

const kubectlValidate = "sigs.k8s.io/kubectl-validate@v0.0.4"

// The manifests are valid by the schemas of Kubernetes, and one with a fault is not.
func TestKubernetesSchemas(t *testing.T) {
	validate := func(text string) (string, error) {
		file := filepath.Join(t.TempDir(), "kubernetes.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", "run", kubectlValidate, "--version", "1.30", file)
		cmd.Dir = t.TempDir() // no module's go.mod decides what is run
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	text := deployed(t, "kubernetes.yaml")
	if out, err := validate(text); err != nil || strings.Count(out, "OK") == 0 {
		t.Errorf("%s: %v\n%s", kubectlValidate, err, out)
	}
	for from, to := range map[string]string{
		"periodSeconds: 2":       "periodSecond: 2",
		"sleep: {seconds: 5}":    "sleep: {seconds: short}",
		"policyTypes: [Ingress]": "policyTypes: Ingress",
		"  selector:\n    matchLabels: {app: holdfast}\n  template:": "  template:",
	} {
		if !strings.Contains(text, from) {
			t.Fatalf("no %q in kubernetes.yaml", from)
		}
		if out, err := validate(strings.Replace(text, from, to, 1)); err == nil {
			t.Errorf("%q in the place of %q is valid:\n%s", to, from, out)
		}
	}
}

// A manifest is what the tests look at in an object.
type manifest struct {
	Kind     string
	Metadata struct{ Name string }
	Data     map[string]string
	Spec     struct {
		Selector    json.RawMessage
		PodSelector struct{ MatchLabels map[string]string }
		Ports       []port
		Ingress     []struct{ Ports []port }
		Template    struct {
			Metadata struct{ Labels map[string]string }
			Spec     pod
		}
	}
}

// A port is one of a Service, of a container or of a policy.
type port struct {
	Name, TargetPort string
	Port             any
	ContainerPort    int
}

type pod struct {
	TerminationGracePeriodSeconds int
	Containers                    []container
	Volumes                       []struct {
		Name   string
		Secret struct{ SecretName string }
	}
}

type container struct {
	Args      []string
	EnvFrom   []struct{ ConfigMapRef struct{ Name string } }
	Ports     []port
	Lifecycle struct {
		PreStop struct{ Sleep struct{ Seconds int } }
	}
	ReadinessProbe, LivenessProbe struct {
		HTTPGet struct{ Path, Port string }
	}
	VolumeMounts []struct{ Name, MountPath string }
}

// manifests returns the objects by their kind.
func manifests(t *testing.T) map[string]manifest {
	t.Helper()
	all := map[string]manifest{}
	for documents := yaml.NewDecoder(strings.NewReader(deployed(t, "kubernetes.yaml"))); ; {
		var document any
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(document) // whose names of fields Go matches in any case
		if err != nil {
			t.Fatal(err)
		}
		var m manifest
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		all[m.Kind] = m
	}
}

// What one object says of another holds, and the stop fits into its time.
func TestKubernetesFits(t *testing.T) {
	all := manifests(t)
	pod := all["Deployment"].Spec.Template
	c := pod.Spec.Containers[0]

	drain, err := time.ParseDuration(all["ConfigMap"].Data["DRAIN_TIMEOUT"])
	if err != nil {
		t.Fatal(err)
	}
	needs := time.Duration(c.Lifecycle.PreStop.Sleep.Seconds)*time.Second + drain + stopMargin
	if grace := time.Duration(pod.Spec.TerminationGracePeriodSeconds) * time.Second; grace < needs {
		t.Errorf("terminationGracePeriodSeconds is %v; preStop, DRAIN_TIMEOUT and %v are %v", grace, stopMargin, needs)
	}

	selected(t, all)

	config, err := server.ParseConfig(nil, func(string) string { return "" }, "", io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if _, number, _ := net.SplitHostPort(config.Addr); len(c.Ports) != 1 || strconv.Itoa(c.Ports[0].ContainerPort) != number {
		t.Errorf("the container's ports are %+v, want the server's default, %s, alone", c.Ports, number)
	}
	for what, name := range map[string]any{
		"Service": all["Service"].Spec.Ports[0].TargetPort, "NetworkPolicy": all["NetworkPolicy"].Spec.Ingress[0].Ports[0].Port,
		"readiness probe": c.ReadinessProbe.HTTPGet.Port, "liveness probe": c.LivenessProbe.HTTPGet.Port,
	} {
		if name != c.Ports[0].Name {
			t.Errorf("the %s leads to port %v, want %s", what, name, c.Ports[0].Name)
		}
	}
	if n := len(all["Service"].Spec.Ports) + len(all["NetworkPolicy"].Spec.Ingress[0].Ports); n != 2 {
		t.Errorf("the Service and the NetworkPolicy have %d ports, want one each: the operator's is for nobody", n)
	}
}

// selected fails unless each object that selects pods selects these.
func selected(t *testing.T, all map[string]manifest) {
	t.Helper()
	labels, _ := json.Marshal(all["Deployment"].Spec.Template.Metadata.Labels)
	policy, _ := json.Marshal(all["NetworkPolicy"].Spec.PodSelector.MatchLabels)
	for kind, selector := range map[string]string{
		"Service": string(all["Service"].Spec.Selector), "Deployment": string(all["Deployment"].Spec.Selector), "NetworkPolicy": string(policy),
	} {
		if selector != string(labels) && selector != `{"matchLabels":`+string(labels)+`}` {
			t.Errorf("the %s selects %s; the pods have %s", kind, selector, labels)
		}
	}
}

// The server starts with the settings and arguments of the pod, and answers the probes as
// they mean it. The operator's listener wants the token, and is on the loopback address.
func TestKubernetesServes(t *testing.T) {
	all := manifests(t)
	c := all["Deployment"].Spec.Template.Spec.Containers[0]
	p := launchPod(t, all)
	addr := p.Addr()
	probe := func(path string, want int) {
		t.Helper()
		if res, text := do(t, "GET", "http://"+addr+path, nil); res.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", path, res.StatusCode, text, want)
		}
	}
	probe(c.ReadinessProbe.HTTPGet.Path, 200)
	probe(c.LivenessProbe.HTTPGet.Path, 200)
	if res, text := do(t, "GET", "http://"+p.Admin()+"/stats", nil); res.StatusCode != 401 {
		t.Errorf("the operator's listener without the token: %d %s", res.StatusCode, text)
	}

	if res, text := do(t, "POST", "http://"+addr+"/bbb", strings.NewReader(`{"sleep_time":1}`)); res.StatusCode != 202 {
		t.Errorf("a job: %d %s", res.StatusCode, text)
	}
	terminate(t, p, addr, func() {
		probe(c.ReadinessProbe.HTTPGet.Path, 503)
		probe(c.LivenessProbe.HTTPGet.Path, 200)
	})
}

// launchPod starts the server with the environment and the arguments of the container.
func launchPod(t *testing.T, all map[string]manifest) *proctest.Process {
	t.Helper()
	pod := all["Deployment"].Spec.Template.Spec
	c := pod.Containers[0]
	var env []string
	for name, value := range all["ConfigMap"].Data {
		env = append(env, name+"="+value)
	}
	if len(c.EnvFrom) != 1 || c.EnvFrom[0].ConfigMapRef.Name != all["ConfigMap"].Metadata.Name {
		t.Errorf("the environment comes from %+v, want the ConfigMap", c.EnvFrom)
	}
	if len(pod.Volumes) != 1 || len(c.VolumeMounts) != 1 || pod.Volumes[0].Secret.SecretName == "" || c.VolumeMounts[0].Name != pod.Volumes[0].Name {
		t.Fatalf("the volumes are %+v, mounted as %+v; want the Secret's", pod.Volumes, c.VolumeMounts)
	}
	secret := t.TempDir()
	if err := os.WriteFile(filepath.Join(secret, "token"), []byte(adminToken), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-addr", "127.0.0.1:0", "-admin", "127.0.0.1:0", "-linger", "0"}
	for _, arg := range c.Args {
		args = append(args, strings.Replace(arg, c.VolumeMounts[0].MountPath, secret, 1))
	}
	return proctest.Launch(t, env, proctest.Build(t), args...)
}

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/schema_validation"
	"github.com/pb33f/libopenapi/datamodel/high/base"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"
	"github.com/pb33f/libopenapi/orderedmap"
	"go.yaml.in/yaml/v4"
)

// descriptionFile is the file that the server embeds.
var descriptionFile = filepath.Join("..", "internal", "server", "openapi.json")

// A description is the OpenAPI description, which messages are checked against.
type description struct {
	mu        sync.Mutex // the library modifies the model when it validates
	model     *v3.Document
	validator validator.Validator
	schemas   schema_validation.SchemaValidator
	paths     []described
}

// A described is a path of the description with its operations, by method in upper
// case.
type described struct {
	template   string
	pattern    *regexp.Regexp
	operations map[string]*v3.Operation
}

func readDescription(t *testing.T) *description {
	t.Helper()
	text, err := os.ReadFile(descriptionFile)
	if err != nil {
		t.Fatal(err)
	}
	document, err := libopenapi.NewDocument(text)
	if err != nil {
		t.Fatal(err)
	}
	model, err := document.BuildV3Model()
	if err != nil {
		t.Fatal(err)
	}
	v, errs := validator.NewValidator(document, config.WithFormatAssertions())
	if errs != nil {
		t.Fatal(errs)
	}
	d := &description{
		model:     &model.Model,
		validator: v,
		schemas:   schema_validation.NewSchemaValidator(config.WithFormatAssertions()),
	}
	parameter := regexp.MustCompile(`\\\{\w+\\\}`)
	for template, item := range d.model.Paths.PathItems.FromOldest() {
		p := described{
			template:   template,
			pattern:    regexp.MustCompile("^" + parameter.ReplaceAllString(regexp.QuoteMeta(template), "[^/]+") + "$"),
			operations: make(map[string]*v3.Operation),
		}
		for method, operation := range item.GetOperations().FromOldest() {
			p.operations[strings.ToUpper(method)] = operation
		}
		d.paths = append(d.paths, p)
	}
	return d
}

// statuses returns every answer that the description lists, as
// "METHOD template status".
func (d *description) statuses() []string {
	var all []string
	for _, p := range d.paths {
		for method, operation := range p.operations {
			for code := range operation.Responses.Codes.KeysFromOldest() {
				all = append(all, method+" "+p.template+" "+code)
			}
		}
	}
	for _, name := range anywhere {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// anywhere has the names of the responses that belong to no operation, so that no
// operation lists them.
var anywhere = map[int]string{
	http.StatusForbidden:          "CrossSite",
	http.StatusNotFound:           "UnknownPath",
	http.StatusMethodNotAllowed:   "MethodNotAllowed",
	http.StatusServiceUnavailable: "TooManyConnections",
}

// find returns the path and the operation of a request, each nil if it is not
// described.
func (d *description) find(r *http.Request) (p *described, method string, operation *v3.Operation) {
	for i := range d.paths {
		if p := &d.paths[i]; p.pattern.MatchString(r.URL.Path) {
			method := r.Method
			if method == http.MethodHead && p.operations[method] == nil {
				method = http.MethodGet // GET includes HEAD
			}
			return p, method, p.operations[method]
		}
	}
	return nil, r.Method, nil
}

// allowed returns the methods that an Allow header must name, sorted.
func (p *described) allowed() (methods []string) {
	for method := range p.operations {
		methods = append(methods, method)
	}
	if p.operations[http.MethodGet] != nil && p.operations[http.MethodHead] == nil {
		methods = append(methods, http.MethodHead)
	}
	slices.Sort(methods)
	return methods
}

// An answer is a response with its body, except that of an event stream.
type answer struct {
	status int
	header http.Header
	body   []byte
}

func (a *answer) streams() bool {
	return a.header.Get("Content-Type") == "text/event-stream"
}

// checkRequest returns the differences between a request and the description.
func (d *description) checkRequest(r *http.Request, body []byte) (wrong []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, _, operation := d.find(r); operation == nil {
		return []string{"not described"}
	}
	r = r.Clone(r.Context())
	if r.Method == http.MethodPost {
		r.Header.Set("Content-Type", "application/json") // the server ignores it
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	_, errs := d.validator.ValidateHttpRequestSync(r)
	return messages(errs)
}

// checkAnswer returns the differences between an answer and the description, and which
// of statuses it was. The library alone does not check for undescribed statuses and
// headers, missing headers, and anything about HEAD.
func (d *description) checkAnswer(r *http.Request, a *answer) (seen string, wrong []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, method, operation := d.find(r)
	status := strconv.Itoa(a.status)
	var response *v3.Response
	if operation != nil {
		response = operation.Responses.Codes.GetOrZero(status)
		seen = method + " " + path.template + " " + status
	}
	listed := response != nil
	if response == nil {
		if path == nil && a.status == http.StatusNotFound ||
			path != nil && operation == nil && a.status == http.StatusMethodNotAllowed ||
			a.status == http.StatusForbidden || a.status == http.StatusServiceUnavailable {
			seen = anywhere[a.status]
			response = d.model.Components.Responses.GetOrZero(seen)
		}
	}
	if response == nil {
		return "", []string{"the status " + status + " is not described"}
	}
	if a.status == http.StatusMethodNotAllowed {
		allow := strings.Split(a.header.Get("Allow"), ", ")
		slices.Sort(allow)
		if !slices.Equal(allow, path.allowed()) {
			wrong = append(wrong, fmt.Sprintf("Allow is %q, but the description has %q", allow, path.allowed()))
		}
	}
	wrong = append(wrong, d.checkHeaderLocked(response, a.header)...)
	wrong = append(wrong, d.checkBodyLocked(r, response, a)...)
	if listed && r.Method != http.MethodHead && !a.streams() {
		_, errs := d.validator.ValidateHttpResponse(r, &http.Response{
			StatusCode: a.status, Header: folded(a.header), Body: io.NopCloser(bytes.NewReader(a.body)), Request: r,
		})
		wrong = append(wrong, messages(errs)...)
	}
	return seen, wrong
}

// transport are the headers of the connection, and of the content, which the
// description covers elsewhere.
var transport = []string{"Connection", "Content-Length", "Content-Type", "Date", "Transfer-Encoding"}

func (d *description) checkHeaderLocked(response *v3.Response, header http.Header) (wrong []string) {
	described := make(map[string]bool)
	for name, h := range response.Headers.FromOldest() {
		described[http.CanonicalHeaderKey(name)] = true
		values := header.Values(name)
		if len(values) == 0 {
			if h.Required {
				wrong = append(wrong, name+" is missing")
			}
			continue
		}
		text := strings.Join(values, ", ")
		schema := h.Schema.Schema()
		var value any = text
		if slices.Contains(schema.Type, "integer") {
			n, err := strconv.Atoi(text)
			if err != nil || strconv.Itoa(n) != text {
				wrong = append(wrong, fmt.Sprintf("%s is %q, not an integer", name, text))
				continue
			}
			value = n
		}
		for _, w := range d.checkSchemaLocked(schema, value) {
			wrong = append(wrong, fmt.Sprintf("%s is %q: %s", name, text, w))
		}
	}
	for name := range header {
		if !described[name] && !slices.Contains(transport, name) {
			wrong = append(wrong, name+" is not described")
		}
	}
	return wrong
}

func (d *description) checkBodyLocked(r *http.Request, response *v3.Response, a *answer) (wrong []string) {
	length := a.header.Get("Content-Length")
	kind := a.header.Get("Content-Type")
	switch {
	case r.Method == http.MethodHead:
		if len(a.body) != 0 {
			wrong = append(wrong, "HEAD has a body")
		}
		return wrong
	case a.streams():
		if orderedmap.Len(response.Content) == 0 || response.Content.GetOrZero(kind) == nil {
			wrong = append(wrong, kind+" is not described")
		}
		return wrong // pass checks its events
	case length != "" && length != strconv.Itoa(len(a.body)):
		wrong = append(wrong, fmt.Sprintf("Content-Length is %s, but the body has %d bytes", length, len(a.body)))
	}
	if orderedmap.Len(response.Content) == 0 {
		if len(a.body) != 0 || kind != "" {
			wrong = append(wrong, fmt.Sprintf("no body is described, but there are %d bytes of %q", len(a.body), kind))
		}
		return wrong
	}
	media, parameters, err := mime.ParseMediaType(kind)
	content := response.Content.GetOrZero(media)
	if err != nil || content == nil {
		return append(wrong, fmt.Sprintf("the media type %q is not described", kind))
	}
	var value any = string(a.body)
	if strings.HasPrefix(media, "text/") {
		if parameters["charset"] != "utf-8" {
			wrong = append(wrong, fmt.Sprintf("the Content-Type is %q, want utf-8", kind))
		}
	} else if value, err = decode(a.body); err != nil {
		return append(wrong, fmt.Sprintf("the body %q is not JSON: %v", a.body, err))
	}
	for _, w := range d.checkSchemaLocked(content.Schema.Schema(), value) {
		wrong = append(wrong, fmt.Sprintf("the body %.300q: %s", a.body, w))
	}
	if problem, ok := value.(map[string]any); ok && media == "application/problem+json" {
		// A schema for each status would say this too, but at much greater length.
		if problem["status"] != float64(a.status) || problem["title"] != http.StatusText(a.status) {
			wrong = append(wrong, fmt.Sprintf("the body %q does not match %d %s", a.body, a.status, http.StatusText(a.status)))
		}
	}
	return wrong
}

// checkJob returns the differences between an event's data and the description.
func (d *description) checkJob(data []byte) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	value, err := decode(data)
	if err != nil {
		return []string{err.Error()}
	}
	return d.checkSchemaLocked(d.model.Components.Schemas.GetOrZero("Job").Schema(), value)
}

func (d *description) checkSchemaLocked(schema *base.Schema, value any) []string {
	_, errs := d.schemas.ValidateSchemaObject(schema, value)
	return messages(errs)
}

func decode(text []byte) (value any, err error) {
	err = json.Unmarshal(text, &value)
	return value, err
}

// folded returns a header with one line per name. For a client several lines form one
// list, but the library checks only single values.
func folded(h http.Header) http.Header {
	one := make(http.Header)
	for name, values := range h {
		one[name] = []string{strings.Join(values, ", ")}
	}
	return one
}

func messages(errs []*errors.ValidationError) (texts []string) {
	for _, e := range errs {
		text := e.Message + ": " + e.Reason
		for _, s := range e.SchemaValidationErrors {
			text += "; " + s.Reason
		}
		texts = append(texts, text)
	}
	return texts
}

func TestDescriptionIsValid(t *testing.T) {
	d := readDescription(t)
	if d.model.Version != "3.1.0" {
		t.Errorf("the OpenAPI version is %q, want 3.1.0", d.model.Version)
	}
	if valid, errs := d.validator.ValidateDocument(); !valid {
		t.Error(strings.Join(messages(errs), "\n"))
	}
	for _, p := range d.paths {
		for method, operation := range p.operations {
			for _, parameter := range operation.Parameters {
				if slices.Contains([]string{"accept", "content-type", "authorization"}, strings.ToLower(parameter.Name)) {
					t.Errorf("%s %s: OpenAPI ignores a parameter %s", method, p.template, parameter.Name)
				}
			}
		}
	}
}

// The examples in the description must match their schemas.
func TestExamplesAreValid(t *testing.T) {
	d := readDescription(t)
	var wrong []string
	check := func(where string, schema *base.SchemaProxy, example *yaml.Node) {
		if example == nil {
			return
		}
		var value any
		if err := example.Decode(&value); err != nil {
			t.Errorf("%s: %v", where, err)
			return
		}
		for _, w := range d.checkSchemaLocked(schema.Schema(), value) {
			wrong = append(wrong, where+": "+w)
		}
	}
	content := func(where string, all *orderedmap.Map[string, *v3.MediaType]) {
		for kind, media := range all.FromOldest() {
			check(where+" "+kind, media.Schema, media.Example)
			for name, example := range media.Examples.FromOldest() {
				check(where+" "+name, media.Schema, example.Value)
			}
		}
	}
	parameters := func(where string, all []*v3.Parameter) {
		for _, p := range all {
			check(where+" "+p.Name, p.Schema, p.Example)
			for name, example := range p.Examples.FromOldest() {
				check(where+" "+p.Name+" "+name, p.Schema, example.Value)
			}
		}
	}
	for _, p := range d.paths {
		for method, operation := range p.operations {
			where := method + " " + p.template
			parameters(where, operation.Parameters)
			if operation.RequestBody != nil {
				content(where, operation.RequestBody.Content)
			}
			for code, response := range operation.Responses.Codes.FromOldest() {
				content(where+" "+code, response.Content)
			}
		}
	}
	for name, response := range d.model.Components.Responses.FromOldest() {
		content(name, response.Content)
	}
	for name, header := range d.model.Components.Headers.FromOldest() {
		if header.Example == nil {
			t.Errorf("the header %s has no example", name)
		}
		check(name, header.Schema, header.Example)
	}
	for _, w := range wrong {
		t.Error(w)
	}
}

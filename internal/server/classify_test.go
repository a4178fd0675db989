package server

import (
	"fmt"
	"net/http"
	"testing"

	"holdfast"
)

func TestClassifier(t *testing.T) {
	for _, test := range []struct {
		args []string
		from string
		head http.Header
		want holdfast.Class
	}{
		{[]string{"-trust-priority"}, "192.0.2.1:1", http.Header{"Priority": {"u=1"}}, holdfast.Class{Urgency: 2}},
		{[]string{"-trust-priority"}, "192.0.2.1:1", http.Header{"Priority": {"u=9"}}, holdfast.Class{}},
		{[]string{"-trust-priority"}, "192.0.2.1:1", nil, holdfast.Class{}},
		{[]string{"-client-key", "address"}, "192.0.2.1:1", http.Header{"Priority": {"u=1"}}, holdfast.Class{Client: "192.0.2.1"}},
		{[]string{"-client-places", "5"}, "192.0.2.1:1", http.Header{"X-Forwarded-For": {"198.51.100.1"}}, holdfast.Class{Client: "192.0.2.1"}},
		{[]string{"-client-key", "address", "-trusted-proxies", "192.0.2.0/24"}, "192.0.2.1:1", http.Header{"X-Forwarded-For": {"203.0.113.1, 198.51.100.1"}}, holdfast.Class{Client: "198.51.100.1"}},
		{[]string{"-client-key", "address"}, "[2001:db8:1:2:3:4:5:6%eth0]:1", nil, holdfast.Class{Client: "2001:db8:1:2::/64"}},
		{[]string{"-client-key", "address"}, "[::ffff:192.0.2.1]:1", nil, holdfast.Class{Client: "192.0.2.1"}},
		{[]string{"-client-key", "address"}, "@", nil, holdfast.Class{}},
		{[]string{"-client-key", "x-api-key", "-trust-priority"}, "192.0.2.1:1", http.Header{"X-Api-Key": {"secret"}, "Priority": {"u=7"}}, holdfast.Class{Urgency: -4, Client: "2bb80d537b1da3e3"}},
		{[]string{"-client-key", "x-api-key"}, "192.0.2.1:1", nil, holdfast.Class{Client: "192.0.2.1"}},
	} {
		c, _, err := parse(nil, test.args...)
		if err != nil {
			t.Fatal(err)
		}
		got := c.Jobs().Classify(&http.Request{RemoteAddr: test.from, Header: test.head})
		if fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%q, %s, %v: %+v, want %+v", test.args, test.from, test.head, got, test.want)
		}
	}
	if c, _, _ := parse(nil); c.Jobs().Classify != nil {
		t.Error("requests are told apart, though nothing asks for it")
	}
}

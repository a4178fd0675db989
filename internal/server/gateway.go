package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"holdfast/internal/problem"
)

// Time-outs of the gateway besides that of the job: none of them limits how long
// the upstream may take to answer.
const (
	dialTimeout = 10 * time.Second
	idleConn    = 90 * time.Second
)

// Gateway returns a handler that passes requests on to the service at upstream,
// with the X-Forwarded-* headers of its own in place of the client's, and answers
// for it where it does not: 504 if it is late, else 502. Responses have at most
// maxResponse bytes. It keeps as many connections to it as jobs run at once.
func Gateway(upstream *url.URL, workers int, maxResponse int64, log *slog.Logger) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(upstream)
			r.Out.URL.RawQuery = r.In.URL.RawQuery // also what ReverseProxy cannot parse: it is not for us to read
			for name := range r.Out.Header {
				if strings.HasPrefix(name, "X-Forwarded-") || name == "X-Real-Ip" {
					delete(r.Out.Header, name)
				}
			}
			r.SetXForwarded()
		},
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:    dialTimeout,
			ExpectContinueTimeout:  time.Second,
			IdleConnTimeout:        idleConn,
			MaxIdleConns:           0, // as many as are used at once
			MaxIdleConnsPerHost:    max(workers, 1),
			MaxResponseHeaderBytes: 64 << 10,
			DisableCompression:     true, // what the client asks for is what it gets
			ForceAttemptHTTP2:      true,
		},
		// The response is in memory anyway before a client gets it. Read here, one
		// that breaks off is told from one that does not.
		ModifyResponse: func(r *http.Response) error {
			if r.StatusCode == http.StatusSwitchingProtocols {
				return unusable("the upstream switches protocols, which a queued request cannot")
			}
			body, err := io.ReadAll(io.LimitReader(r.Body, maxResponse+1))
			r.Body.Close()
			if err != nil {
				return err
			}
			if int64(len(body)) > maxResponse {
				return unusable(fmt.Sprintf("the response of the upstream is too large; want at most %d bytes", maxResponse))
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil {
				log.Warn("upstream failed", "method", r.Method, "path", r.URL.Path, "error", err)
			}
			late, ok := errors.AsType[net.Error](err)
			why, known := errors.AsType[unusable](err)
			switch {
			case errors.Is(err, context.DeadlineExceeded) || ok && late.Timeout():
				problem.Write(w, http.StatusGatewayTimeout, "the upstream has not answered in time")
			case known:
				problem.Write(w, http.StatusBadGateway, string(why))
			default:
				problem.Write(w, http.StatusBadGateway, "the upstream has not answered, or not completely")
			}
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// unusable says why a response of the upstream cannot be passed on.
type unusable string

func (u unusable) Error() string { return string(u) }

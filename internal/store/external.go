package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"polder/api"
)

// TLS names the PEM files with which the endpoints of an external cluster are reached by https. Each may be empty.
type TLS struct {
	CA   string // who signs the cluster's certificates; empty: the authorities that the machine trusts
	Cert string // this client's certificate; read anew for each connection, so that it can be replaced
	Key  string // of Cert
}

const (
	// reconnectEvery is the longest pause between two tries to reach a cluster that is gone. gRPC's own is two minutes.
	reconnectEvery = 2 * time.Second
	// aliveEvery is how often a connection on which nothing happens is tried: does the process at its end still answer? etcd
	// refuses clients that ask more than every 5 s, gRPC those that want less than 10.
	aliveEvery = 10 * time.Second
	// silentEvery is how often the kernel asks the other side's kernel: a host that died without a word is noticed by that.
	silentEvery = time.Second
	// aliveTimeout is how long either may take to answer before the connection counts as broken.
	aliveTimeout = 2 * time.Second
)

// connect makes the client of an external cluster. It does not wait for the cluster.
func connect(o Options) (client *clientv3.Client, secure bool, err error) {
	o.Endpoints = completeEndpoints(o.Endpoints, o.TLS != (TLS{}))
	if secure, err = checkEndpoints(o); err != nil {
		return nil, secure, err
	}
	var config *tls.Config
	if secure {
		if config, err = o.TLS.config(); err != nil {
			return nil, secure, err
		}
	}
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silentEvery, Interval: silentEvery}}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return dialer.DialContext(ctx, "tcp", address)
	}
	retry := backoff.DefaultConfig
	retry.BaseDelay, retry.MaxDelay = reconnectEvery/10, reconnectEvery
	client, err = clientv3.New(clientv3.Config{
		Endpoints:            o.Endpoints,
		TLS:                  config,
		DialTimeout:          requestTimeout,
		DialKeepAliveTime:    aliveEvery,
		DialKeepAliveTimeout: aliveTimeout,
		MaxCallSendMsgSize:   2 * maxRequest, // how large a request may be is for the cluster to say
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: aliveTimeout}),
			grpc.WithContextDialer(dial),
		},
		Logger: zapLogger(o.Log, nil, nil),
	})
	if err != nil {
		return nil, secure, api.Errorf(api.Unavailable, "connect to etcd %s: %w", strings.Join(o.Endpoints, ", "), err)
	}
	return client, secure, nil
}

// checkEndpoints says whether the cluster is reached by https. etcd's client takes the first endpoint's word for all.
func checkEndpoints(o Options) (secure bool, err error) {
	scheme := ""
	for _, endpoint := range o.Endpoints {
		u, err := url.Parse(endpoint)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" {
			return false, api.Errorf(api.Invalid, "etcd endpoint %q: want http://HOST:PORT or https://HOST:PORT", endpoint)
		}
		if scheme != "" && u.Scheme != scheme {
			return false, api.Errorf(api.Invalid, "etcd endpoints %s: want http for all of them, or https", strings.Join(o.Endpoints, ", "))
		}
		scheme = u.Scheme
	}
	if scheme != "https" && o.TLS != (TLS{}) {
		return false, api.Errorf(api.Invalid, "etcd's TLS files %s: want https endpoints with them", strings.Join(o.TLS.names(), ", "))
	}
	return scheme == "https", nil
}

func (t TLS) names() (names []string) {
	for _, name := range []string{t.CA, t.Cert, t.Key} {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// config reads the files.
func (t TLS) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.CA != "" {
		text, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, api.Errorf(api.Invalid, "read etcd's CA: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, api.Errorf(api.Invalid, "read etcd's CA: %s: no certificate in PEM form in it", t.CA)
		}
	}
	if (t.Cert == "") != (t.Key == "") {
		return nil, api.Errorf(api.Invalid, "read the certificate for etcd: want both a certificate and its key")
	}
	if t.Cert == "" {
		return config, nil
	}
	if _, err := t.certificate(); err != nil {
		return nil, api.Errorf(api.Invalid, "read the certificate for etcd: %w", err)
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.certificate() }
	return config, nil
}

func (t TLS) certificate() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	return &pair, err
}

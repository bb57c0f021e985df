package store

import (
	"context"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// clients are those who come to a member by the network.
type clients struct {
	member string
	admit  func(ctx context.Context, what string, creates bool) error
	ctx    context.Context // done when they have to go
	cutOff context.CancelFunc
}

// freeingHeader is how Freeing goes over the network.
const freeingHeader = "polder-freeing"

func newClients(member string, admit func(ctx context.Context, what string, creates bool) error) *clients {
	c := &clients{member: member, admit: admit}
	c.ctx, c.cutOff = context.WithCancel(context.Background())
	return c
}

func (c *clients) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainStreamInterceptor(c.stream), grpc.ChainUnaryInterceptor(c.unary)}
}

// unary lets writes pass for which this member has room. A member whose disk is full to the last byte stops and the others
// go on without it, so that each need only look after itself.
func (c *clients) unary(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	txn, ok := request.(*etcdserverpb.TxnRequest)
	if !ok {
		return handle(ctx, request)
	}
	var w writes
	w.add(txn)
	if w.puts {
		if len(metadata.ValueFromIncomingContext(ctx, freeingHeader)) > 0 {
			ctx = Freeing(ctx)
		}
		if err := c.admit(ctx, "member "+c.member, w.creates); err != nil {
			return nil, status.Error(codes.ResourceExhausted, err.Error())
		}
	}
	return handle(ctx, request)
}

// writes is what a transaction may do, as far as it needs room.
type writes struct {
	puts    bool // not only deletes
	creates bool // records that were not there
	absent  map[string]bool
}

func (w *writes) add(txn *etcdserverpb.TxnRequest) {
	if w.absent == nil {
		w.absent = map[string]bool{}
	}
	for _, c := range txn.Compare {
		if c.Target == etcdserverpb.Compare_CREATE && c.GetCreateRevision() == 0 && c.Result == etcdserverpb.Compare_EQUAL {
			w.absent[string(c.Key)] = true
		}
	}
	for _, op := range txn.Success {
		if inner := op.GetRequestTxn(); inner != nil {
			w.add(inner)
		}
		if put := op.GetRequestPut(); put != nil && !strings.HasPrefix(string(put.Key), markersRoot) {
			w.puts = true
			w.creates = w.creates || w.absent[string(put.Key)]
		}
	}
}

// stream ends a client's watch when the member stops: etcd would wait seven seconds for it to end by itself.
func (c *clients) stream(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	stop := context.AfterFunc(c.ctx, cancel)
	defer stop()
	return handle(server, endingStream{stream, ctx})
}

type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s endingStream) Context() context.Context { return s.ctx }

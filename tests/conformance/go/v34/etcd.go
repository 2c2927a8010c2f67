// Package etcd names what the tour uses of clientv3, so that one tour serves every release of the client.
//
// This one is clientv3 of release 3.4.
package etcd

import (
	"context"
	"errors"
	"io"
	"time"

	v3 "go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
	"go.etcd.io/etcd/etcdserver/api/v3rpc/rpctypes"
	"go.etcd.io/etcd/etcdserver/etcdserverpb"
	"go.etcd.io/etcd/mvcc/mvccpb"
)

// Release is the release of the client library.
const Release = "3.4"

// Names of the library under this release's import path.
type (
	AlarmMember   = v3.AlarmMember
	Client        = v3.Client
	Cmp           = v3.Cmp
	CompactOption = v3.CompactOption
	Election      = concurrency.Election
	EtcdError     = rpctypes.EtcdError
	Event         = v3.Event
	GetResponse   = v3.GetResponse
	Isolation     = concurrency.Isolation
	LeaseOption   = v3.LeaseOption
	KeyValue      = mvccpb.KeyValue
	LeaseID       = v3.LeaseID
	Mutex         = concurrency.Mutex
	// Observed is what a watch of an election yields.
	Observed       = v3.GetResponse
	Op             = v3.Op
	OpOption       = v3.OpOption
	ResponseHeader = etcdserverpb.ResponseHeader
	ResponseOp     = etcdserverpb.ResponseOp
	STM            = concurrency.STM
	Session        = concurrency.Session
	SortOrder      = v3.SortOrder
	SortTarget     = v3.SortTarget
	TxnResponse    = v3.TxnResponse
	WatchChan      = v3.WatchChan
)

// Functions and values of the library.
var (
	Compare             = v3.Compare
	CreateRevision      = v3.CreateRevision
	EventTypePut        = v3.EventTypePut
	LeaseValue          = v3.LeaseValue
	ModRevision         = v3.ModRevision
	NewElection         = concurrency.NewElection
	NewMutex            = concurrency.NewMutex
	NewSTM              = concurrency.NewSTM
	NewSession          = concurrency.NewSession
	OpDelete            = v3.OpDelete
	OpGet               = v3.OpGet
	OpPut               = v3.OpPut
	OpTxn               = v3.OpTxn
	ResumeElection      = concurrency.ResumeElection
	Value               = v3.Value
	Version             = v3.Version
	WithAttachedKeys    = v3.WithAttachedKeys
	WithCompactPhysical = v3.WithCompactPhysical
	WithCountOnly       = v3.WithCountOnly
	WithCreatedNotify   = v3.WithCreatedNotify
	WithFilterDelete    = v3.WithFilterDelete
	WithFilterPut       = v3.WithFilterPut
	WithFirstCreate     = v3.WithFirstCreate
	WithFirstKey        = v3.WithFirstKey
	WithFirstRev        = v3.WithFirstRev
	WithFromKey         = v3.WithFromKey
	WithIgnoreLease     = v3.WithIgnoreLease
	WithIgnoreValue     = v3.WithIgnoreValue
	WithIsolation       = concurrency.WithIsolation
	WithKeysOnly        = v3.WithKeysOnly
	WithLastCreate      = v3.WithLastCreate
	WithLastKey         = v3.WithLastKey
	WithLastRev         = v3.WithLastRev
	WithLease           = v3.WithLease
	WithLimit           = v3.WithLimit
	WithMaxCreateRev    = v3.WithMaxCreateRev
	WithMaxModRev       = v3.WithMaxModRev
	WithMinCreateRev    = v3.WithMinCreateRev
	WithMinModRev       = v3.WithMinModRev
	WithPrefix          = v3.WithPrefix
	WithPrevKV          = v3.WithPrevKV
	WithRange           = v3.WithRange
	WithRequireLeader   = v3.WithRequireLeader
	WithRev             = v3.WithRev
	WithSerializable    = v3.WithSerializable
	WithSessionLease    = concurrency.WithLease
	WithSort            = v3.WithSort
	WithTTL             = concurrency.WithTTL
)

// Constants of the library.
const (
	ReadCommitted        = concurrency.ReadCommitted
	RepeatableReads      = concurrency.RepeatableReads
	Serializable         = concurrency.Serializable
	SerializableSnapshot = concurrency.SerializableSnapshot
	SortAscend           = v3.SortAscend
	SortByCreateRevision = v3.SortByCreateRevision
	SortByKey            = v3.SortByKey
	SortByModRevision    = v3.SortByModRevision
	SortByValue          = v3.SortByValue
	SortByVersion        = v3.SortByVersion
	SortDescend          = v3.SortDescend
	SortNone             = v3.SortNone
)

// ErrAbsent says that this release of the client has no such call.
var ErrAbsent = errors.New("not in this release of the client")

// Connect makes a client that retries by itself.
func Connect(endpoint string) (*Client, error) {
	return v3.New(v3.Config{Endpoints: []string{endpoint}, DialTimeout: 10 * time.Second})
}

// TryLock takes the lock only if it is free.
func TryLock(context.Context, *Mutex) error { return ErrAbsent }

// Snapshot opens the stream of the database.
func Snapshot(ctx context.Context, client *Client) (io.ReadCloser, error) {
	return client.Snapshot(ctx)
}

// RequestProgress asks for a progress response on the stream of the context.
func RequestProgress(ctx context.Context, client *Client) error { return client.RequestProgress(ctx) }

// WithFragment lets a response of a watch come in parts.
func WithFragment() []OpOption { return []OpOption{v3.WithFragment()} }

// Package store keeps payloads: in a folder, or in an S3-compatible object store.
package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// A Store keeps data under names. Its methods may be called by any number of
// goroutines at once.
type Store interface {
	// Put stores data whole or not at all. An error does not say that nothing is
	// stored; the same may be put again, one after the other.
	Put(ctx context.Context, name string, data []byte) error
}

// Open returns the bucket at the URL s3, or if that is empty the folder at path.
func Open(ctx context.Context, path, s3 string) (Store, error) {
	if s3 != "" {
		return OpenS3(ctx, s3)
	}
	return OpenFolder(path)
}

// A Folder keeps each payload in a file. Its methods may be called by any number of
// goroutines at once.
type Folder struct{ root *os.Root }

// OpenFolder returns the Folder at path, and makes it if it is not there.
func OpenFolder(path string) (*Folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	return &Folder{root}, err
}

// Put writes the file of a name, which has at least 3 characters. The first two
// are the folder that it is in, since no one folder should have a million files.
// No name leads out of the Folder.
//
// A file is there whole or not at all, also if the process is killed; that can
// leave a file behind that ends in .part. It is not synced, which would take longer
// than all else: a machine that loses power can lose the files of the last seconds.
func (f *Folder) Put(_ context.Context, name string, data []byte) error {
	if len(name) < 3 {
		return fmt.Errorf("name %q; want at least 3 characters", name)
	}
	folder := name[:2]
	file, part := folder+"/"+name, folder+"/"+name+".part"
	err := f.root.WriteFile(part, data, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		f.root.Mkdir(folder, 0o700) // unless somebody else was faster
		err = f.root.WriteFile(part, data, 0o600)
	}
	if err == nil {
		err = f.root.Rename(part, file)
	}
	if err != nil {
		f.root.Remove(part)
	}
	return err
}

// An S3 keeps each payload in an object of one bucket, private as long as the bucket
// is. Its methods may be called by any number of goroutines at once.
type S3 struct {
	client *minio.Client
	bucket string
}

// OpenS3 returns the S3 of a bucket that exists, at http(s)://host[:port]/bucket.
// The credentials are in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if there is
// one, AWS_SESSION_TOKEN; the region is in AWS_REGION, or the server is asked.
func OpenS3(ctx context.Context, address string) (*S3, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("address of the object store; want http(s)://host[:port]/bucket, and the credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, err
	}
	transport.MaxIdleConnsPerHost = transport.MaxIdleConns // all go to one host
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewEnvAWS(), Secure: u.Scheme == "https", Region: os.Getenv("AWS_REGION"),
		Transport: transport, MaxRetries: 1, // who calls Put tries again
	})
	if err != nil {
		return nil, err
	}
	bucket := strings.Trim(u.Path, "/")
	exists, err := client.BucketExists(ctx, bucket)
	if err == nil && !exists {
		err = fmt.Errorf("bucket %q does not exist", bucket)
	}
	return &S3{client, bucket}, err
}

// Put writes the object of a name. An object store makes it appear whole.
func (s *S3) Put(ctx context.Context, name string, data []byte) error {
	_, err := s.client.PutObject(ctx, s.bucket, name, bytes.NewReader(data), int64(len(data)),
		minio.PutObjectOptions{ContentType: "application/octet-stream"})
	return err
}

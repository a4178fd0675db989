// Package store stores payloads in a folder or in an S3-compatible object store.
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

// A Store stores data under names. It is safe for concurrent use.
type Store interface {
	// Put stores data completely or not at all. After an error the data may be stored
	// or not. Calling Put again with the same name and data is harmless, but not at the
	// same time.
	Put(ctx context.Context, name string, data []byte) error
}

// Open opens the bucket at the URL s3, or the folder at path if s3 is empty.
func Open(ctx context.Context, path, s3 string) (Store, error) {
	if s3 != "" {
		return OpenS3(ctx, s3)
	}
	return OpenFolder(path)
}

// A Folder stores each payload in a file. It is safe for concurrent use.
type Folder struct{ root *os.Root }

// OpenFolder opens the Folder at path, and creates it if necessary.
func OpenFolder(path string) (*Folder, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	return &Folder{root}, err
}

// Put writes data to the file with a name of at least 3 characters. The first two
// name a subfolder, so that no folder has a million files. No name can refer to a
// file outside the Folder.
//
// A file appears complete or not at all. If the process is killed, a file that ends
// in .part can remain. Put does not sync, which would take longer than everything
// else, so a power failure can lose the files of the last seconds.
func (f *Folder) Put(_ context.Context, name string, data []byte) error {
	if len(name) < 3 {
		return fmt.Errorf("name %q; want at least 3 characters", name)
	}
	folder := name[:2]
	file, part := folder+"/"+name, folder+"/"+name+".part"
	err := f.root.WriteFile(part, data, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		f.root.Mkdir(folder, 0o700) // another goroutine may have created it
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

// An S3 stores each payload as an object in a bucket. Objects are as private as the
// bucket. It is safe for concurrent use.
type S3 struct {
	client *minio.Client
	bucket string
}

// OpenS3 opens an existing bucket at http(s)://host[:port]/bucket. It takes the
// credentials from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the optional
// AWS_SESSION_TOKEN, and the region from AWS_REGION or else from the server.
func OpenS3(ctx context.Context, address string) (*S3, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("invalid address of the object store; want http(s)://host[:port]/bucket, and credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	transport, err := minio.DefaultTransport(u.Scheme == "https")
	if err != nil {
		return nil, err
	}
	transport.MaxIdleConnsPerHost = transport.MaxIdleConns // there is only one host
	client, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewEnvAWS(), Secure: u.Scheme == "https", Region: os.Getenv("AWS_REGION"),
		Transport: transport, MaxRetries: 1, // the caller of Put retries
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

// Put writes an object. Object stores make it appear completely or not at all.
func (s *S3) Put(ctx context.Context, name string, data []byte) error {
	_, err := s.client.PutObject(ctx, s.bucket, name, bytes.NewReader(data), int64(len(data)),
		minio.PutObjectOptions{ContentType: "application/octet-stream"})
	return err
}

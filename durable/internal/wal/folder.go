package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

const (
	lockName    = "lock"
	formatName  = "format"
	clusterName = "cluster"   // only there in the folder of a member
	storeName   = "jetstream" // the server's

	formatText  = "holdfast log, format %d\n"
	clusterText = "cluster %s, node %s\n"
)

// room is how much the disk must be able to take before the log is opened, or the
// server started anew, in bytes.
const room = 1 << 20

// errInUse is the error of a lock that another process has.
var errInUse = errors.New("the folder is in use by another process")

// A folder is the locked folder of a log. The server inside takes no lock, so two of
// them would write into the same files.
type folder struct {
	dir  string
	lock *os.File

	// Of settle, which the writer alone calls.
	messages string    // the folder that the server makes files in
	modified time.Time // of that folder, when it was synced
	settled  bool      // it has not changed since
}

// openFolder makes the folder if it is not there, locks it, and checks its format.
func openFolder(dir string) (*folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("wal: make the folder of the log: %w", err)
	}
	f, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	if err = f.checkAlone(); err == nil {
		err = f.checkFormat(true)
	}
	if err != nil {
		f.close()
		return nil, fmt.Errorf("wal: open %s: %w", dir, err)
	}
	return f, nil
}

// openClusterFolder is like openFolder, for the folder of a member.
func openClusterFolder(dir string, c Cluster) (*folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the log: %w", err)
	}
	f, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	if err = f.checkCluster(c); err == nil {
		err = f.checkFormat(true)
	}
	if err != nil {
		f.close()
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return f, nil
}

// checkAlone returns an error if the folder is that of a member: its server, started
// alone, would not find the log, or change what the other nodes rely on.
func (f *folder) checkAlone() error {
	text, err := os.ReadFile(filepath.Join(f.dir, clusterName))
	if err == nil {
		return fmt.Errorf("it is a part of a log on several nodes (%.200s), and cannot be used without them", strings.TrimSpace(string(text)))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// checkCluster returns an error if the folder is not that of the node. An empty one
// becomes it. The server of a member would delete a log that was made without the
// cluster.
func (f *folder) checkCluster(c Cluster) error {
	name, want := filepath.Join(f.dir, clusterName), fmt.Sprintf(clusterText, c.Name, c.Node)
	text, err := os.ReadFile(name)
	if err == nil && string(text) != want {
		return fmt.Errorf("it is the folder of %.200s, and not of %s", strings.TrimSpace(string(text)), strings.TrimSpace(want))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(f.dir, storeName)); !errors.Is(err, fs.ErrNotExist) {
		return errors.New("it holds the log of a node without a cluster, which cannot become one of a cluster; let that node finish its jobs, and start with an empty folder")
	}
	return writeSynced(name, want)
}

// lockFolder locks a folder that is there.
func lockFolder(dir string) (*folder, error) {
	lock, err := openLock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, fmt.Errorf("wal: lock %s: %w", dir, err)
	}
	return &folder{
		dir: dir, lock: lock,
		messages: filepath.Join(dir, storeName, "$G", "streams", streamName, "msgs"),
	}, nil
}

// folderVersion is the format of the folder and of the records. Those of format 2 know more
// kinds than those of format 1: jobs that wait, and jobs that have failed and run again.
const folderVersion = 2

// checkFormat reads the format of the folder. With create it makes an empty folder one
// of a log.
func (f *folder) checkFormat(create bool) error {
	name := filepath.Join(f.dir, formatName)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(f.dir, storeName)); !create || err == nil {
			return fmt.Errorf("it holds no log: the file %s is missing", formatName)
		}
		return writeSynced(name, fmt.Sprintf(formatText, folderVersion))
	}
	if err != nil {
		return err
	}
	var format int
	if _, err := fmt.Sscanf(string(text), formatText, &format); err != nil {
		return fmt.Errorf("the file %s has %.40q; want %q", formatName, text, fmt.Sprintf(formatText, folderVersion))
	}
	switch {
	case format < 1 || format > folderVersion:
		return fmt.Errorf("the log has format %d; this version of Holdfast reads format 1 to %d", format, folderVersion)
	case create && format < folderVersion: // what is written from here on, an older version could not read
		return writeSynced(name, fmt.Sprintf(formatText, folderVersion))
	}
	return nil
}

// writeSynced writes a file that is whole or not there, whatever happens.
func writeSynced(name, text string) error {
	f, err := os.OpenFile(name+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(name+".new", name)
	}
	if err != nil {
		os.Remove(name + ".new")
		return err
	}
	return syncFile(filepath.Dir(name))
}

// hasMessages reports whether the server has left files with messages.
func (f *folder) hasMessages() bool {
	files, err := os.ReadDir(f.messages)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".blk") {
			continue
		}
		if info, err := file.Info(); err != nil || info.Size() > 0 {
			return true
		}
	}
	return false
}

// probe returns an error if the disk cannot take another n bytes and some room. It
// writes them: the free space of a file system says little, of quotas nothing.
func (f *folder) probe(n int) error {
	name := filepath.Join(f.dir, "room")
	defer os.Remove(name)
	file, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(make([]byte, room+n))
	if err == nil {
		err = file.Sync() // some file systems find the room only then
	}
	if e := file.Close(); err == nil {
		err = e
	}
	return err
}

// settle makes what the server has created in its folder outlive a power cut. The
// server syncs the content of a new file, but not the folder that names it. Looking
// at the folder costs about a microsecond, beside the fsync of the message.
func (f *folder) settle() error {
	info, err := os.Stat(f.messages)
	if err != nil {
		return err
	}
	if f.settled && info.ModTime().Equal(f.modified) {
		return nil
	}
	// The times of files are as coarse as the kernel's tick. A change soon after this
	// one may have the same time, so the next call syncs again.
	f.modified, f.settled = info.ModTime(), time.Since(info.ModTime()) > 20*time.Millisecond
	return syncFile(f.messages)
}

// sync makes everything in the folder outlive a power cut.
func (f *folder) sync() error {
	return filepath.WalkDir(f.dir, func(name string, entry fs.DirEntry, err error) error {
		if err == nil && (entry.IsDir() || entry.Type().IsRegular()) {
			err = syncFile(name)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server has removed it since
		}
		return err
	})
}

// syncFile syncs a file or a folder.
func syncFile(name string) error {
	mode := os.O_RDONLY
	if runtime.GOOS == "windows" {
		info, err := os.Stat(name)
		if err != nil || info.IsDir() || filepath.Base(name) == lockName {
			return err // it has no sync of folders, and the lock lets nobody open its file
		}
		mode = os.O_RDWR
	}
	file, err := os.OpenFile(name, mode, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Sync()
}

// close unlocks the folder.
func (f *folder) close() { f.lock.Close() }

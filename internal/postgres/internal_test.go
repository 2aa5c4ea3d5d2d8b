package postgres

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestProgramsAreDownloadedOnceAndWithoutAnyData(t *testing.T) {
	t.Parallel()
	requests := 0
	jar := fakeJar(t)
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		if strings.HasSuffix(r.URL.Path, ".sha256") {
			sum := sha256.Sum256(jar)
			_, _ = w.Write([]byte(hex.EncodeToString(sum[:])))
			return
		}
		_, _ = w.Write(jar)
	}))
	defer mirror.Close()
	s := &Server{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	for range 2 {
		dir, err := s.download(t.Context(), mirror.URL, 15)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.inspect(t.Context(), dir)
		if err != nil || b.major != 15 {
			t.Errorf("got %+v and %v, want the programs of version 15", b, err)
		}
	}
	if requests != 2 {
		t.Errorf("the mirror was asked %d times, want once for the programs and once for their sum", requests)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("the download left %v", entries)
	}
}

func TestAFailedDownloadSaysWhyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	mirror := httptest.NewServer(http.NotFoundHandler())
	defer mirror.Close()
	s := &Server{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	if _, err := s.download(t.Context(), mirror.URL, 0); err == nil || !strings.Contains(err.Error(), "no version found") {
		t.Errorf("got %v, want the mirror's answer", err)
	}
	if _, err := s.download(t.Context(), mirror.URL, 9); err == nil {
		t.Error("a version without a download was downloaded")
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 0 {
		t.Errorf("the download left %v", entries)
	}
}

func TestProgramsOfTheDatasVersionAreChosen(t *testing.T) {
	t.Parallel()
	s := &Server{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	programs := filepath.Join(s.dir, "bin")
	writePrograms(t, programs, "16.4")
	if b, err := s.findBinaries(t.Context(), Options{Binaries: programs}); err != nil || b.major != 16 || b.version != "16.4" {
		t.Errorf("got %+v and %v, want version 16.4 for a fresh directory", b, err)
	}
	writePrograms(t, programs, "12.1")
	if _, err := s.findBinaries(t.Context(), Options{Binaries: programs}); err == nil || !strings.Contains(err.Error(), "12.1") {
		t.Errorf("got %v, want that version 12.1 is too old", err)
	}
	if err := os.Mkdir(s.dataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.findBinaries(t.Context(), Options{Binaries: programs}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that the directory holds no database", err)
	}
	if err := os.WriteFile(filepath.Join(s.dataDir(), versionFile), []byte("12\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := s.findBinaries(t.Context(), Options{Binaries: programs}); err != nil || b.major != 12 {
		t.Errorf("got %+v and %v, want version 12 for data of version 12", b, err)
	}
	if _, err := s.findBinaries(t.Context(), Options{Binaries: s.dir}); err == nil || !strings.Contains(err.Error(), s.dir) {
		t.Errorf("got %v, want an error that names the directory without programs", err)
	}
}

func TestTheLogIsTrimmedAndItsEndIsShown(t *testing.T) {
	t.Parallel()
	s := &Server{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	log, err := s.openLog()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.file.Write(bytes.Repeat([]byte("x"), largestLog)); err != nil {
		t.Fatal(err)
	}
	log.trim(s.log)
	text := "1 [1] FATAL:  no room\n"
	if _, err := log.file.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if tail := log.tail(); tail != "\n1 [1] FATAL:  no room" {
		t.Errorf("got %q", tail)
	}
	log.close()
	for name, size := range map[string]int64{"postgres.log": int64(len(text)), "postgres.log.1": largestLog} {
		info, err := os.Stat(filepath.Join(s.dir, name))
		if err != nil || info.Size() != size {
			t.Errorf("%s has %v bytes (%v), want %d", name, info.Size(), err, size)
		}
	}
}

// writePrograms puts scripts in place of a Postgres.
func writePrograms(t *testing.T, dir, version string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + " (Test)'\n"
	for _, name := range []string{"initdb", "postgres", "pg_ctl"} {
		writeProgram(t, filepath.Join(dir, name), []byte(script))
	}
}

// writeProgram writes while nothing is forked: a child that inherits the open
// file for a moment would keep the program from being run.
func writeProgram(t *testing.T, path string, content []byte) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
}

// fakeJar packs programs as the mirror does: a tar, in xz, in a zip.
func fakeJar(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	writePrograms(t, filepath.Join(dir, "bin"), "15.13")
	archive, err := exec.CommandContext(context.WithoutCancel(t.Context()), "tar", "-C", dir, "-cJf", "-", "bin").Output()
	if err != nil {
		t.Skipf("this machine cannot pack an archive in xz: %v", err)
	}
	var jar bytes.Buffer
	w := zip.NewWriter(&jar)
	file, err := w.Create("postgres-linux-x86_64.txz")
	if err == nil {
		_, err = file.Write(archive)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return jar.Bytes()
}

package postgres

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	largestLog = 8 << 20
	trimEvery  = 30 * time.Second
	tailBytes  = 2048
)

// logFile is what Postgres says. It is a file and not a pipe, because a pipe
// fills up while the service is stopped or gone, and then every backend that
// reports something hangs.
type logFile struct {
	file  *os.File
	start int64 // where this postmaster's words begin
}

func (s *Server) openLog() (*logFile, error) {
	path := filepath.Join(s.dir, "postgres.log")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the database's log: %w", err)
	}
	l := &logFile{file: file}
	l.trim(s.log)
	if info, err := file.Stat(); err == nil {
		l.start = info.Size()
	}
	return l, nil
}

// trim keeps one older file beside the current one. Postgres goes on writing to
// the file it was given, so that one is copied and emptied.
func (l *logFile) trim(log *slog.Logger) {
	info, err := l.file.Stat()
	if err != nil || info.Size() < largestLog {
		return
	}
	old, err := os.OpenFile(l.file.Name()+".1", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = io.Copy(old, io.NewSectionReader(l.file, 0, info.Size()))
		if closeErr := old.Close(); err == nil {
			err = closeErr
		}
	}
	if err == nil {
		err = l.file.Truncate(0)
	}
	if err != nil {
		log.Warn("the database's log cannot be trimmed", "error", err)
		return
	}
	l.start = 0
}

// tail returns the last lines of this postmaster, for an error.
func (l *logFile) tail() string {
	info, err := l.file.Stat()
	if err != nil {
		return ""
	}
	from := max(l.start, info.Size()-tailBytes)
	text, err := io.ReadAll(io.NewSectionReader(l.file, from, info.Size()-from))
	if err != nil || len(text) == 0 {
		return ""
	}
	return "\n" + strings.TrimSpace(string(text))
}

func (l *logFile) close() { _ = l.file.Close() }

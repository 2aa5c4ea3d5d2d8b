package keyledger_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are the Markdown files of the repository, without their code.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	code := regexp.MustCompile("(?s)```.*?```")
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "bin" || entry.Name() == "testdata"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		texts[path] = code.ReplaceAllString(string(text), "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

func TestTheDocumentsPointToWhatIsThere(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	links := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for path, text := range texts {
		for _, match := range links.FindAllStringSubmatch(text, -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(match[1], "#")
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s points to %s, which is not there", path, match[1])
			}
			if anchor != "" && filepath.Ext(target) == ".md" && !hasHeading(texts[target], anchor) {
				t.Errorf("%s points to %s, and there is no such heading", path, match[1])
			}
		}
	}
}

// hasHeading says whether a heading gets an anchor, as GitHub makes it.
func hasHeading(text, anchor string) bool {
	dropped := regexp.MustCompile(`[^\pL\pN _-]`)
	for line := range strings.Lines(text) {
		heading, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
		if !ok || !strings.HasPrefix(line, "#") {
			continue
		}
		slug := dropped.ReplaceAllString(strings.ToLower(strings.TrimSpace(heading)), "")
		if strings.ReplaceAll(slug, " ", "-") == anchor {
			return true
		}
	}
	return false
}

// alertsAreAboutMetrics holds what the operator is told to watch against what a
// server publishes.
func alertsAreAboutMetrics(t *testing.T, shell *shell) {
	t.Helper()
	published := shell.run(t, "curl http://127.0.0.1:8080/metrics")
	// The one that needs a bad day to appear.
	published += "# HELP keyledger_append_retries_total "
	suffix := regexp.MustCompile(`_(bucket|sum|count)$`)
	for _, name := range regexp.MustCompile(`\bkeyledger_[a-z_]+\b`).FindAllString(documents(t)["docs/operations.md"], -1) {
		if name == "keyledger_service" || name == "keyledger_owner" { // roles of the database
			continue
		}
		if !strings.Contains(published, "# HELP "+suffix.ReplaceAllString(name, "")+" ") {
			t.Errorf("docs/operations.md speaks of %s, and /metrics does not", name)
		}
	}
}

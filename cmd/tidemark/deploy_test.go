package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
)

// at walks into what YAML holds, nil if nothing is there.
func at(v any, path ...any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[step]
		case int:
			l, _ := v.([]any)
			if step >= len(l) {
				return nil
			}
			v = l[step]
		}
	}
	return v
}

func readYAML(t *testing.T, name string) (v any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// What we hand to those who run containers gives the server no more than it needs:
// no root, no file system to write but the store, no rights to gain, and versions
// that do not move.
func TestContainersAreTight(t *testing.T) {
	compose, pod := at(readYAML(t, "compose.yaml"), "services", "tidemark"), at(readYAML(t, "kubernetes.yaml"), "spec", "template", "spec")
	container := at(pod, "containers", 0)
	for name, test := range map[string]struct{ got, want any }{
		"compose: user":                {at(compose, "user"), "65532:65532"},
		"compose: read_only":           {at(compose, "read_only"), true},
		"compose: cap_drop":            {at(compose, "cap_drop", 0), "ALL"},
		"compose: no-new-privileges":   {at(compose, "security_opt", 0), "no-new-privileges:true"},
		"compose: port":                {at(compose, "ports", 0), "127.0.0.1:8080:8080"},
		"pod: runAsNonRoot":            {at(pod, "securityContext", "runAsNonRoot"), true},
		"pod: runAsUser":               {at(pod, "securityContext", "runAsUser"), 65532},
		"pod: seccomp":                 {at(pod, "securityContext", "seccompProfile", "type"), "RuntimeDefault"},
		"pod: service account":         {at(pod, "automountServiceAccountToken"), false},
		"pod: read-only":               {at(container, "securityContext", "readOnlyRootFilesystem"), true},
		"pod: no escalation":           {at(container, "securityContext", "allowPrivilegeEscalation"), false},
		"pod: capabilities":            {at(container, "securityContext", "capabilities", "drop", 0), "ALL"},
		"pod: configuration read-only": {at(container, "volumeMounts", 1, "readOnly"), true},
	} {
		if test.got != test.want {
			t.Errorf("%s: %v, want %v", name, test.got, test.want)
		}
	}
	images := []string{at(compose, "image").(string), at(container, "image").(string)}
	for _, line := range instructions(t) {
		if image, is := strings.CutPrefix(line, "FROM "); is && image != "scratch" {
			images = append(images, strings.Fields(image)[0])
		}
	}
	fixed := regexp.MustCompile(`^[a-z/.-]+:\d+\.\d+\.\d+(-[a-z]+)?$`)
	for _, image := range images {
		if !fixed.MatchString(image) {
			t.Errorf("the image %s has no version that stays", image)
		}
	}
}

// instructions are those of the Dockerfile, continued lines joined.
func instructions(t *testing.T) (all []string) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", "")) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			all = append(all, line)
		}
	}
	return all
}

// The image ends without root and without anything but the binary; and it is built
// with the Go that go.mod asks for, or a later one.
func TestDockerfile(t *testing.T) {
	known := regexp.MustCompile(`^(FROM|WORKDIR|COPY|RUN|USER|ENV|VOLUME|EXPOSE|ENTRYPOINT|CMD) \S`)
	var last []string // of the final stage
	for _, line := range instructions(t) {
		if !known.MatchString(line) {
			t.Errorf("no instruction: %s", line)
		}
		if strings.HasPrefix(line, "FROM ") {
			last = nil
		}
		last = append(last, line)
	}
	if len(last) == 0 || last[0] != "FROM scratch" {
		t.Fatalf("the final stage is %q, want scratch", last)
	}
	text := strings.Join(last, "\n")
	for _, want := range []string{"\nUSER 65532:65532\n", "\nVOLUME /var/lib/tidemark\n", "\nENTRYPOINT [\"/usr/local/bin/tidemark\"]\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the final stage lacks %q:\n%s", strings.TrimSpace(want), text)
		}
	}
	if strings.Contains(text, "\nRUN") || strings.Contains(text, "ADD ") {
		t.Errorf("the final stage does more than copy:\n%s", text)
	}
}

// Nothing that a store, its server or a backup leaves on the disk is for anybody but
// its owner, however careless the umask: all of it may hold patients' data.
func TestFilesAreOurs(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes on Windows")
	}
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	r := oneTopic(t)
	r.start() // with our umask
	syscall.Umask(old)
	for i := range 5 { // several commits, and merges of them
		r.put(r.change("Patient", fmt.Sprint(i%4), []byte(fmt.Sprint(i)), time.Now()))
		r.until("it is committed", func() bool { return r.rows() > i })
	}
	_, m := r.beyond(time.Now(), map[string][]string{"_elements": {"Patient.id"}}) // writes files of its own
	r.ids(m)
	backup := filepath.Join(t.TempDir(), "new", "backup")
	syscall.Umask(0)
	if got, code := ends(t, "backup", backup, "--copy", "--store", r.store()); code != 0 {
		t.Fatalf("backup: exit %d: %s", code, got)
	}
	restored := filepath.Join(t.TempDir(), "restored")
	made, err := filepath.Glob(filepath.Join(backup, "*", "backup.json"))
	if err != nil || len(made) != 1 {
		t.Fatalf("backups: %v, %v", made, err)
	}
	if got, code := ends(t, "restore", filepath.Dir(made[0]), restored); code != 0 {
		t.Fatalf("restore: exit %d: %s", code, got)
	}
	syscall.Umask(old)
	r.private(t, r.store(), true)
	r.private(t, backup, false)
	r.private(t, restored, false)
}

// private fails for whatever others may do below a directory. An open directory
// hides what is in it, but the files are to be safe when they are moved, too.
func (r *rig) private(t *testing.T, dir string, socket bool) {
	t.Helper()
	n, sockets := 0, 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) { // a merge took it away
				return nil
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		n++
		if info.Mode()&fs.ModeSocket != 0 {
			sockets++
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%v %s", info.Mode(), strings.TrimPrefix(path, dir))
		}
		return nil
	})
	if err != nil || n < 10 || (sockets > 0) != socket {
		t.Errorf("%s: %d files, %d sockets, %v", filepath.Base(dir), n, sockets, err)
	}
}

// The server needs nothing to write but its store: it runs as nobody, on a file system
// that is read-only elsewhere, as in the container.
func TestReadOnlyRoot(t *testing.T) {
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("needs root on Linux, to give it up")
	}
	for _, tool := range []string{"unshare", "setpriv"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("skipped: %s not found, apt-get install util-linux", tool)
		}
	}
	if err := exec.Command("unshare", "--mount", "true").Run(); err != nil {
		t.Skipf("no mounts of one's own here: %v", err)
	}
	r := oneTopic(t)
	if err := os.Mkdir(r.store(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(r.store(), 65532, 65532); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Dir(r.store())
	for _, dir := range []string{inner, filepath.Dir(inner)} { // of the test's temporary folder
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := `mount --make-rprivate / && mount --bind "$1" "$1" && mount -o remount,bind,ro / && cd / && shift &&
		! touch /tidemark-was-here 2>/dev/null && exec setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"`
	binary := filepath.Join(filepath.Dir(os.Args[0]), filepath.Base(os.Args[0]))
	args := append([]string{"--mount", "sh", "-c", script, "sh", r.store(), binary}, r.args...)
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(plainEnviron(), actAsProgram+"=1")
	log, err := os.Create(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.server = cmd
	r.ready()
	r.put(r.change("Basic", "one", nil, time.Now()))
	_, m := r.beyond(time.Now(), nil)
	if got := r.ids(m); len(got) != 1 {
		t.Errorf("exported %v, want one resource", got)
	}
	if err := r.stop(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}

// The tests that SECURITY.md points to are there.
func TestSecurityIsShown(t *testing.T) {
	text, err := os.ReadFile("../../deploy/SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		code.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(Test[A-Za-z]+)`").FindAllStringSubmatch(string(text), -1)
	if len(names) < 10 {
		t.Errorf("SECURITY.md names %d tests", len(names))
	}
	for _, n := range names {
		if !strings.Contains(code.String(), "func "+n[1]+"(") {
			t.Errorf("SECURITY.md names %s, which is nowhere", n[1])
		}
	}
}

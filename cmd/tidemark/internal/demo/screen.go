package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// A screen prints the story: the same lines to a terminal and to a file, with
// colours and a moving bar only on a terminal.
type screen struct {
	out      io.Writer
	terminal bool
	begun    time.Time
	bar      *progressbar.ProgressBar
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out, begun: time.Now()}
	if f, ok := out.(*os.File); ok {
		s.terminal = term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
	}
	return s
}

// line prints one line as it is.
func (s *screen) line(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// step prints what has been reached, and when.
func (s *screen) step(name, format string, args ...any) {
	s.line("%5.1fs  %-9s %s", time.Since(s.begun).Seconds(), name, fmt.Sprintf(format, args...))
}

// event prints a heading of the story.
func (s *screen) event(name, format string, args ...any) {
	s.line(" %s%s%s", s.bold(name), strings.Repeat(" ", max(1, 10-len(name))), fmt.Sprintf(format, args...))
}

// more prints what belongs to the event above.
func (s *screen) more(format string, args ...any) {
	s.line("           %s", fmt.Sprintf(format, args...))
}

// barWidth is that of the bar while it moves and in the line that stays.
const barWidth = 20

// progress moves the bar. It is for terminals only.
func (s *screen) progress(n, of int64) {
	if s.bar == nil {
		s.bar = progressbar.NewOptions64(of,
			progressbar.OptionSetWriter(s.out),
			progressbar.OptionSetDescription("        ingest   "),
			progressbar.OptionSetWidth(barWidth),
			progressbar.OptionSetElapsedTime(false),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetTheme(progressbar.Theme{Saucer: "█", SaucerPadding: "░"}),
			progressbar.OptionClearOnFinish(),
		)
	}
	// It is full when the server is ready, not when all is read. A terminal that
	// cannot be written to is noticed by nobody.
	_ = s.bar.Set64(min(n, of-1))
}

// done takes the bar away.
func (s *screen) done() {
	if s.bar != nil {
		_ = s.bar.Clear()
		s.bar = nil
	}
}

func (s *screen) bold(text string) string { return s.paint("1", text) }
func (s *screen) good(text string) string { return s.paint("1;32", text) }
func (s *screen) bad(text string) string  { return s.paint("1;31", text) }
func (s *screen) paint(how, t string) string {
	if !s.terminal {
		return t
	}
	return "\x1b[" + how + "m" + t + "\x1b[0m"
}

func count[T int | int64](n T) string { return humanize.Comma(int64(n)) }

func size[T int | int64](n T) string { return humanize.Bytes(uint64(n)) }

// ms is a duration in milliseconds, finer where it is short.
func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + one + "s"
}

package adm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// searchPath lists the directories with an administrator's own hooks, macros and
// templates: MARS_PATH, or the usual places. Unlike the original's default it does
// not begin with the current directory, where anybody may have put something for
// root to run.
func searchPath(env Env) []string {
	if p := env.Getenv("MARS_PATH"); p != "" {
		return slices.DeleteFunc(strings.Split(p, ":"), func(d string) bool { return d == "" })
	}
	var dirs []string
	if home := env.Getenv("HOME"); home != "" {
		dirs = append(dirs, filepath.Join(home, ".marsadm"))
	}
	return append(dirs, etcDir(env), "/usr/lib/marsadm", "/usr/local/lib/marsadm")
}

func etcDir(env Env) string {
	if d := env.Getenv("ETC_MARSADM"); d != "" {
		return d
	}
	return "/etc/marsadm"
}

// hooks finds the executables for a moment (pre, post, all-pre, all-post) of a
// command, in the order in which they run.
func hooks(env Env, moment, command string) []string {
	var out []string
	for _, dir := range searchPath(env) {
		for _, name := range []string{"hook-" + moment + "-" + command, "hook-" + moment} {
			if executable(filepath.Join(dir, name)) {
				out = append(out, filepath.Join(dir, name))
			}
			list, err := os.ReadDir(filepath.Join(dir, name+".d"))
			if err != nil {
				continue
			}
			for _, e := range list { // sorted by name
				if path := filepath.Join(dir, name+".d", e.Name()); executable(path) {
					out = append(out, path)
				}
			}
		}
	}
	return out
}

func executable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}

// trusted refuses to run what somebody else may have written.
func trusted(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d", path, owner.Uid)
	}
	if st.Mode()&0o022 != 0 {
		return fmt.Errorf("%s can be written by others (mode %04o)", path, st.Mode().Perm())
	}
	return nil
}

// runHooks runs the hooks of one moment as COMMAND RESOURCE ARGS. One that fails
// stops the command for that resource, unless it is forced.
func (s *session) runHooks(ctx context.Context, moment, res string, args []string) error {
	for _, hook := range hooks(s.env, moment, s.command) {
		if s.opt.dryRun {
			s.print("DRY_RUN: would run hook '%s'\n", strings.Join(append([]string{hook, s.command, res}, args...), " "))
			continue
		}
		err := trusted(hook)
		if err == nil {
			s.detail("running hook %s", hook)
			cmd := exec.CommandContext(ctx, hook, append([]string{s.command, res}, args...)...)
			cmd.Env = append(os.Environ(), "MARS_ROOT="+s.tree.Root(), "MARS_NODE="+s.node, "MARS_HOST="+s.host)
			cmd.WaitDelay = killDelay
			var out []byte
			out, err = cmd.CombinedOutput()
			if len(out) > 0 {
				s.print("%s\n", strings.TrimSuffix(string(out), "\n"))
			}
		}
		switch {
		case err == nil:
		case s.forced():
			s.warn("hook %s: %v", hook, err)
		default:
			return refuse("repair the hook, or --force to go on without it", "hook %s: %v", hook, hookError(err))
		}
	}
	return nil
}

// killDelay is how long a hook may keep its output open after it was told to end.
const killDelay = 5e9

func hookError(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return fmt.Errorf("exit code %d", exit.ExitCode())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("its interpreter does not exist")
	}
	return err
}

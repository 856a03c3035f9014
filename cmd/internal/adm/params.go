package adm

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"mars/symlinktree"
)

func paramVerbs() []verb {
	out := []verb{
		{name: "set-sync-limit-value", args: "N", help: "= set-global-sync-limit-value", hidden: true, min: 1, max: 1, run: setSyncLimit},
		{name: "get-sync-limit-value", help: "= get-global-sync-limit-value", hidden: true, readOnly: true, run: getSyncLimit},
		{name: "set-connect-pref-list", args: "RES [HOST,HOST...]", help: "peers in the order in which logs are fetched from them; nothing = no order",
			res: oneRes, max: -1, each: setPrefList},
		{name: "get-connect-pref-list", args: "RES", help: "print it (nothing if unset)", res: oneRes, readOnly: true, each: getPrefList},
		{name: "set-disabled-digests", args: "RES FLAGS", hidden: true, help: "digests that the original shall not use for a resource", res: oneRes, max: -1,
			each: func(_ context.Context, j *job) error {
				return j.setFlags(j.r.DefaultsPath("disabled-digests"), digestFlags, j.args)
			}},
		{name: "get-disabled-digests", args: "RES", hidden: true, help: "print them", res: oneRes, readOnly: true,
			each: func(_ context.Context, j *job) error { return j.printLink(j.r.DefaultsPath("disabled-digests")) }},
	}
	for _, p := range []struct {
		name  string
		flags []flagName
		what  string
	}{
		{"enabled-log-compressions", compressionFlags, "compressions of log records that the original may use"},
		{"enabled-net-compressions", compressionFlags, "compressions of the network traffic of log and sync: COMPRESS_LZ4 or none set allows it, 0 forbids it"},
		{"disabled-log-digests", digestFlags, "digests of log records that the original shall not use"},
		{"disabled-net-digests", digestFlags, "digests of its network traffic"},
	} {
		path := symlinktree.DefaultsPath(p.name)
		out = append(out,
			verb{name: "set-global-" + p.name, args: "[FLAG|FLAG...]", help: p.what + "; nothing = unset", max: -1,
				run: func(_ context.Context, s *session, args []string) error { return s.setFlags(path, p.flags, args) }},
			verb{name: "get-global-" + p.name, hidden: true, help: "print them", readOnly: true,
				run: func(_ context.Context, s *session, _ []string) error { return s.printLink(path) }})
	}
	return out
}

// printLink prints a parameter, or nothing if it is not set.
func (s *session) printLink(path string) error {
	if v, ok := s.tree.Get(path); ok {
		s.print("%s\n", v)
	}
	return nil
}

// printLinkOr prints a parameter, or what holds if it is not set.
func (s *session) printLinkOr(path, standard string) error {
	if !has(s.tree, path) {
		s.print("%s\n", standard)
	}
	return s.printLink(path)
}

// flagName is an algorithm bit of the tree (reference symlink-tree 1.1).
type flagName struct {
	name string
	bit  uint32
}

var (
	digestFlags = []flagName{
		{"CHKSUM_MD5_OLD", 0x10000}, {"CHKSUM_MD5", 0x20000}, {"CHKSUM_CRC32C", 0x40000}, {"CHKSUM_CRC32", 0x80000}, {"CHKSUM_SHA1", 0x100000},
	}
	compressionFlags = []flagName{{"COMPRESS_LZO", 0x1000000}, {"COMPRESS_LZ4", 0x2000000}, {"COMPRESS_ZLIB", 0x4000000}}
)

// parseFlags reads names and numbers (decimal, 0x hexadecimal, 0 octal) that are
// separated by '|' or blanks.
func parseFlags(text string, known []flagName) (uint32, error) {
	var names []string
	all := uint32(0)
	for _, k := range known {
		names, all = append(names, k.name), all|k.bit
	}
	mask := uint32(0)
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == '|' || r == ' ' || r == '\t' || r == ',' }) {
		bit := uint32(0)
		for _, k := range known {
			if strings.EqualFold(word, k.name) {
				bit = k.bit
			}
		}
		if n, err := strconv.ParseUint(word, 0, 32); bit == 0 && err == nil {
			if bit = uint32(n); bit&^all != 0 {
				return 0, usage("0x%08x has bits beyond 0x%08x (%s)", bit, all, strings.Join(names, "|"))
			}
		} else if bit == 0 {
			return 0, &usageError{msg: fmt.Sprintf("unknown flag %q", word), hint: "known here: " + strings.Join(names, "|")}
		}
		mask |= bit
	}
	return mask, nil
}

// setFlags writes a flag link, or deletes it when no flags are given.
func (s *session) setFlags(path string, known []flagName, args []string) error {
	text := strings.Join(args, "|")
	if strings.TrimSpace(text) == "" {
		return s.unset(path)
	}
	mask, err := parseFlags(text, known)
	if err != nil {
		return err
	}
	if err := s.apply([]op{set(path, fmt.Sprintf("0x%08x", mask))}); err != nil {
		return err
	}
	if path == symlinktree.DefaultsPath("enabled-net-compressions") {
		return nil
	}
	s.warn("%s concerns nodes that run the original: marsd chooses digests and compression by itself", path)
	return nil
}

func (s *session) unset(path string) error {
	if !has(s.tree, path) {
		s.detail("%s is not set", path)
		return nil
	}
	return s.apply([]op{del(path)})
}

func setPrefList(_ context.Context, j *job) error {
	var hosts []string
	for _, h := range strings.FieldsFunc(strings.Join(j.args, ","), func(r rune) bool { return r == ',' || r == ' ' || r == '|' }) {
		if !has(j.tree, symlinktree.IPPath(h)) {
			return refuse("hosts of this cluster: "+words(symlinktree.Hosts(j.tree)), "no host %s in the cluster", h)
		}
		hosts = append(hosts, h)
	}
	if len(hosts) == 0 {
		return j.unset(j.r.ConnectPath(j.host))
	}
	return j.apply([]op{set(j.r.ConnectPath(j.host), strings.Join(hosts, ","))})
}

func getPrefList(_ context.Context, j *job) error { return j.printLink(j.r.ConnectPath(j.host)) }

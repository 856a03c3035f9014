package macro

import "strings"

// Kind is what the text of a macro means: it decides about its form in JSON.
type Kind int

// Kinds. The key of the value in JSON is Key.
const (
	KindText Kind = iota
	KindBool
	KindCount
	KindBytes
	KindRate
	KindOps
	KindSeconds
	KindPercent
	KindList
)

// Key is the name of the value in JSON; it ends with the unit.
func (k Kind) Key() string {
	return [...]string{"value", "value_bool", "value_count", "value_bytes", "value_bytes_per_second", "value_operations_per_second",
		"value_seconds", "value_percent", "value_list"}[k]
}

// kinds by the form of a name; the first that fits counts.
var kinds = []struct {
	prefix, suffix string
	kind           Kind
}{
	{"count-", "", KindCount}, {"nr-", "", KindCount},
	{"", "-ops-rate", KindOps}, {"", "-rate", KindRate},
	{"", "-remain", KindSeconds}, {"", "-age", KindSeconds}, {"", "-lag", KindSeconds},
	{"", "-timestamp", KindSeconds}, {"", "-stamp", KindSeconds}, {"", "time", KindSeconds},
	{"", "-percent", KindPercent},
	{"todo-role", "", KindText}, {"is-", "", KindBool}, {"todo-", "", KindBool}, {"", "-reached", KindBool},
	{"disk-present", "", KindBool}, {"device-present", "", KindBool}, {"known-device-mounted", "", KindBool},
	{"", "-lognr", KindCount}, {"", "-basenr", KindCount}, {"", "-logcount", KindCount}, {"", "-permille", KindCount},
	{"device-opened", "", KindCount}, {"device-nrflying", "", KindCount}, {"", "-error", KindCount},
	{"global-sync-limit-value", "", KindCount}, {"get-emergency-limit", "", KindPercent},
	{"", "-pos", KindBytes}, {"", "-size", KindBytes}, {"", "-rest", KindBytes},
	{"", "-peers", KindList}, {"", "-members", KindList}, {"", "-resources", KindList}, {"", "-guests", KindList},
	{"", "-msg", KindList},
}

// KindOf is the kind of the macro called name.
func KindOf(name string) Kind {
	if strings.HasSuffix(name, "-count") {
		return KindCount
	}
	for _, k := range kinds {
		if strings.HasPrefix(name, k.prefix) && strings.HasSuffix(name, k.suffix) {
			return k.kind
		}
	}
	return KindText
}

// Value turns the text of a macro of that kind into what JSON shows. An empty or
// unreadable number is nil; -1 seconds mean that it is not known.
func (k Kind) Value(text string) any {
	switch k {
	case KindText:
		return text
	case KindBool:
		return isTrue(strings.TrimSpace(text))
	case KindList:
		text = strings.TrimSuffix(text, "\n")
		if text == "" {
			return []string{}
		}
		return strings.Split(text, "\n")
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return nil
	}
	if n, ok := whole(text); ok {
		if k == KindSeconds && n < 0 {
			return nil
		}
		return n
	}
	return toNumber(text)
}

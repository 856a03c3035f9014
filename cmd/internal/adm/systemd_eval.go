package adm

import (
	"context"

	"mars/cmd/internal/macro"
	"mars/cmd/internal/systemd"
)

// evalTemplate is @eval of a template: the macro language, in which the variables of
// the template can be read and set.
func (j *job) evalTemplate(text string, vars systemd.Vars) (string, error) {
	p, err := macro.Parse("@eval", text)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), j.opt.timeout)
	defer cancel()
	return j.context(string(j.r)).RunWith(ctx, p, vars)
}

package transport

import "strings"

// SecretFromEnv reads the meaning of MARS_SECRET: the path of the secret's file
// when it starts with "/" or "./", else the secret itself (hex).
func SecretFromEnv(env string) (file, inline string) {
	if strings.HasPrefix(env, "/") || strings.HasPrefix(env, "./") {
		return env, ""
	}
	return "", env
}

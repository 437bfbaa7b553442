package cluster

import (
	"embed"
	"strings"

	"github.com/redis/go-redis/v9"
)

// scriptFiles are the Lua scripts. Each says at its top what it does. Constant.
//
//go:embed scripts
var scriptFiles embed.FS

// readOnly lists the scripts that write nothing. Constant.
var readOnly = map[string]bool{
	"alive": true, "bans": true, "changes": true, "known": true, "networks": true, "readfailures": true, "rights": true, "sessions": true, "uploaded": true,
}

// script is a script that Redis runs. The text is for a server that does not know the hash.
type script struct {
	text, hash string
	readOnly   bool
}

// scripts are all scripts by name.
type scripts map[string]script

func loadScripts() scripts {
	read := func(name string) string {
		text, err := scriptFiles.ReadFile("scripts/" + name)
		if err != nil {
			panic(err) // the files are part of the program
		}
		return string(text)
	}
	files, err := scriptFiles.ReadDir("scripts")
	if err != nil {
		panic(err)
	}
	all := make(scripts, len(files))
	for _, f := range files {
		text := read("prelude.lua") + read(f.Name())
		name := strings.TrimSuffix(f.Name(), ".lua")
		all[name] = script{text, redis.NewScript(text).Hash(), readOnly[name]}
	}
	// With 0 to add it writes nothing.
	all["readfailures"] = script{all["failures"].text, all["failures"].hash, true}
	return all
}

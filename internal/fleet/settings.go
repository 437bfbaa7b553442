package fleet

// Settings are the settings of this gateway in its fleet.
type Settings struct {
	Name      string `yaml:"name" form:"label" reload:"restart" doc:"Its name, for operators. Default: the host name."`
	StateFile string `yaml:"state_file" file:"own" form:"path" reload:"restart" example:"/var/lib/imapgate/state.json" doc:"Without Redis: file in which drained, evacuating and disabled addresses are kept for the next start. Empty: they are forgotten."`
}

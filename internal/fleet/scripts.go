package fleet

import (
	_ "embed"

	"github.com/redis/go-redis/v9"
)

// The texts of the scripts. Each says at its top what it does.
var (
	//go:embed scripts/answer.lua
	answerText string
	//go:embed scripts/claim.lua
	claimText string
	//go:embed scripts/clock.lua
	clockText string
	//go:embed scripts/heartbeat.lua
	heartbeatText string
	//go:embed scripts/index.lua
	indexText string
	//go:embed scripts/renew.lua
	renewText string
	//go:embed scripts/send.lua
	sendText string
	//go:embed scripts/states.lua
	statesText string
)

// The scripts. Each has one key, so that they run in a Redis Cluster too. Constant.
var (
	answerScript    = redis.NewScript(answerText)
	claimScript     = redis.NewScript(claimText)
	clockScript     = redis.NewScript(clockText)
	heartbeatScript = redis.NewScript(heartbeatText)
	indexScript     = redis.NewScript(indexText)
	renewScript     = redis.NewScript(renewText)
	sendScript      = redis.NewScript(sendText)
	statesScript    = redis.NewScript(statesText)
)

package gateway

import (
	"context"

	"imapgate/internal/admin/api"
)

// fleetOperation is what every gateway of the fleet does when one of them is asked.
type fleetOperation[Args, Answer any] struct {
	name string // in the commands of the fleet
	run  func(ctx context.Context, args Args, by string) (Answer, error)
}

// gatewayAnswer is the answer of one gateway.
type gatewayAnswer[Answer any] struct {
	gateway string // its name
	answer  Answer
}

// ask runs an operation at the gateways that scope names, and returns the answers.
func (o fleetOperation[Args, Answer]) ask(ctx context.Context, g *Gateway, scope api.Scope, args Args) ([]gatewayAnswer[Answer], api.Gateways, error) {
	by := api.CallerOf(ctx).Name
	answer, err := o.run(ctx, args, by)
	if err != nil {
		return nil, api.Gateways{}, err
	}
	return []gatewayAnswer[Answer]{{g.name(), answer}}, api.Gateways{Asked: 1, Answered: 1, Missing: []string{}}, nil
}

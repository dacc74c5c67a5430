package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

const splitsMost = 6 // of one namespace: each makes a cursor log more

// mover unloads and splits bundles while the load runs. Requests may fail under faults; what they break is seen by the clients.
type mover struct {
	cluster    *cluster
	namespaces []string
	splits     map[string]int

	moved, split, left, failed int
	lastError                  error
}

func (m *mover) run(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(between(random, 500, 3000)):
		}
		asked, namespace := pick(random, m.cluster.brokers), pick(random, m.namespaces)
		splits, target, at := random.IntN(6) == 0, pick(random, m.cluster.brokers), random.Float64()
		limit := 20 * time.Second
		if random.IntN(4) == 0 {
			// Whoever asks goes away; what has begun must not stay half done.
			limit = between(random, 1, 150)
		}
		var gaveUp net.Error
		if err := m.step(asked, namespace, splits, target, at, limit); err == nil {
			continue
		} else if errors.As(err, &gaveUp) && gaveUp.Timeout() && limit < time.Second {
			m.left++
		} else {
			m.failed++
			m.lastError = err
		}
	}
}

func (m *mover) step(asked *broker, namespace string, splits bool, target *broker, at float64, limit time.Duration) error {
	var bundles struct{ Boundaries []string }
	if err := asked.rest("GET", "admin/v2/namespaces/"+namespace+"/bundles", nil, &bundles); err != nil {
		return err
	}
	count := len(bundles.Boundaries) - 1
	if count < 1 {
		return fmt.Errorf("%s has no bundles: %v", namespace, bundles.Boundaries)
	}
	first := int(at * float64(count))
	path := fmt.Sprintf("admin/v2/namespaces/%s/%s_%s/", namespace, bundles.Boundaries[first], bundles.Boundaries[first+1])
	if splits && m.splits[namespace] < splitsMost {
		if err := asked.restWithin(limit, "PUT", path+"split?unload=true", nil, nil); err != nil {
			return err
		}
		m.splits[namespace]++
		m.split++
		return nil
	}
	if err := asked.restWithin(limit, "PUT", path+"unload?destinationBroker="+target.id, nil, nil); err != nil {
		return err
	}
	m.moved++
	return nil
}

func (m *mover) summary() string {
	text := fmt.Sprintf("%d bundles moved, %d split, %d requests left alone, %d failed", m.moved, m.split, m.left, m.failed)
	if m.lastError != nil {
		text += fmt.Sprintf(", the last one with %v", m.lastError)
	}
	return text
}

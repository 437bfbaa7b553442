package config

import "imapgate/internal/limit"

// minRate lets a full buffer pass well before a peer counts as stalled. Bytes per
// second.
const minRate = 16 << 10

func (c checker) checkLimits() {
	l := &c.cfg.Limits
	if l.TLSHandshakeTimeout > l.PreauthTimeout {
		c.add("limits.tls_handshake_timeout", "is longer than preauth_timeout, which includes it")
	}
	c.checkQuota("limits.user_quota", l.UserQuota)
	if l.Failures.Delay > l.Failures.MaxDelay {
		c.add("limits.failures.delay", "is longer than max_delay")
	}
	for i, listener := range c.cfg.Listeners {
		if listener.Limits == nil {
			continue
		}
		key := MemberKey(ItemKey("listeners", i), "limits")
		own := c.cfg.LimitsOf(listener)
		if f := own.Failures; f != l.Failures && f.Delay > f.MaxDelay {
			c.add(key+".failures.delay", "is longer than max_delay")
		}
		if own.UserQuota != l.UserQuota {
			c.checkQuota(key+".user_quota", own.UserQuota)
		}
	}
	if l.Failures.BanDuration > l.Failures.MaxBanDuration {
		c.add("limits.failures.ban_duration", "is longer than max_ban_duration")
	}
}

func (c checker) checkQuota(key string, b limit.Quotas) {
	for name, rate := range map[string]int{"bytes_in_per_second": b.BytesInPerSecond, "bytes_out_per_second": b.BytesOutPerSecond} {
		if rate > 0 && rate < minRate {
			c.add(MemberKey(key, name), "is less than 16384: at such a rate a session would count as stalled")
		}
	}
}

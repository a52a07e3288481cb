package main

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// answers are when answers to pings came, in order.
type answers []time.Time

var answerLine = regexp.MustCompile(`(?m)^\[(\d+)\.(\d{6})\] \d+ bytes from .*icmp_seq=`)

// parseAnswers reads what `ping -D` prints.
func parseAnswers(out string) (answers, error) {
	var all answers
	for _, match := range answerLine.FindAllStringSubmatch(out, -1) {
		seconds, err := strconv.ParseInt(match[1], 10, 64)
		if err != nil {
			return nil, err
		}
		micros, err := strconv.ParseInt(match[2], 10, 64)
		if err != nil {
			return nil, err
		}
		all = append(all, time.Unix(seconds, micros*1000))
	}
	return all, nil
}

// gap is the longest time without an answer within a window.
func (a answers) gap(from, to time.Time) (time.Duration, error) {
	var longest time.Duration
	var last time.Time
	for _, at := range a {
		if at.Before(from) || at.After(to) {
			continue
		}
		if !last.IsZero() {
			longest = max(longest, at.Sub(last))
		}
		last = at
	}
	if longest == 0 {
		return 0, fmt.Errorf("no pings were answered between %s and %s", from.Format(time.StampMilli), to.Format(time.StampMilli))
	}
	return max(longest, to.Sub(last)), nil
}

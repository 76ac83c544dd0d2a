// k6: the load a client's team would try first. 30 s up to 100 users, 60 s at 100, 30 s down; each posts events
// with a dedup_id as fast as it is answered. Passes where 95 % are answered within 100 ms and fewer than 1 % fail.
//
//   MILLRACE_API_KEY=mr_… k6 run perf/k6.js
//
// MILLRACE_URL      where the server listens (http://127.0.0.1:3000)
// MILLRACE_API_KEY  a key of an organisation without rate limit
// RUN_ID            prefix of every dedup_id. Without it a second run within the deduplication window posts the
//                   same dedup_ids again: accepted, as retries are, and stored only once.
// K6_SUMMARY        where the summary goes as JSON (k6-summary.json)
// K6_SCALE          1 is the whole two minutes; 0.1 a tenth of it, to try the script

import http from 'k6/http';
import { check } from 'k6';

const scale = Number(__ENV.K6_SCALE || 1);
const seconds = (n) => `${Math.max(1, Math.round(n * scale))}s`;

export const options = {
  stages: [
    { duration: seconds(30), target: 100 },
    { duration: seconds(60), target: 100 },
    { duration: seconds(30), target: 0 },
  ],
  thresholds: {
    http_req_duration: ['p(95)<100'],
    http_req_failed: ['rate<0.01'],
    checks: ['rate>0.99'],
  },
  summaryTrendStats: ['min', 'avg', 'med', 'p(90)', 'p(95)', 'p(99)', 'max'],
};

const url = `${__ENV.MILLRACE_URL || 'http://127.0.0.1:3000'}/api/events`;
const prefix = __ENV.RUN_ID ? `${__ENV.RUN_ID}_` : '';
const params = {
  headers: { 'Content-Type': 'application/json', 'X-API-Key': __ENV.MILLRACE_API_KEY },
  timeout: '10s',
};

export function setup() {
  if (!__ENV.MILLRACE_API_KEY) {
    throw new Error('set MILLRACE_API_KEY to a key of an organisation without rate limit');
  }
}

export default function () {
  const body = JSON.stringify({
    type: 'user.login',
    dedup_id: `${prefix}event_${__VU}_${__ITER}`,
    payload: { user_id: __VU, iteration: __ITER, ip: '192.0.2.1', user_agent: 'k6', at: new Date().toISOString() },
  });
  check(http.post(url, body, params), { 'answered 202': (response) => response.status === 202 });
}

export function handleSummary(data) {
  const value = (metric, stat) => (data.metrics[metric] ? data.metrics[metric].values[stat] : NaN);
  const thresholds = Object.entries(data.metrics)
    .flatMap(([name, metric]) => Object.entries(metric.thresholds || {}).map(([rule, { ok }]) => ({ name, rule, ok })))
    .map(({ name, rule, ok }) => `${ok ? 'passed' : 'FAILED'}  ${name} ${rule}`);
  const lines = [
    `requests      ${value('http_reqs', 'count')} (${value('http_reqs', 'rate').toFixed(0)}/s)`,
    `answered 202  ${value('checks', 'passes')}, otherwise ${value('checks', 'fails')}`,
    `latency       med ${value('http_req_duration', 'med').toFixed(2)} ms, p95 ${value('http_req_duration', 'p(95)').toFixed(2)} ms, ` +
      `p99 ${value('http_req_duration', 'p(99)').toFixed(2)} ms, max ${value('http_req_duration', 'max').toFixed(2)} ms`,
    ...thresholds,
  ];
  return {
    stdout: `${lines.join('\n')}\n`,
    [__ENV.K6_SUMMARY || 'k6-summary.json']: JSON.stringify(data, null, 2),
  };
}

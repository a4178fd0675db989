// Follows a job with Azure's poller for long-running operations, and prints the result.
// Usage: node lro.mjs http://host:port '{"sleep_time":1}'
import { createHttpPoller } from "@azure/core-lro";

const [base, work] = process.argv.slice(2);

// send is what a generated client has below the poller.
async function send(method, target, body) {
  const url = new URL(target, base);
  const answer = await fetch(url, { method, body, headers: { "Content-Type": "application/json" } });
  const text = await answer.text();
  const parsed = text === "" ? undefined : JSON.parse(text);
  return {
    flatResponse: parsed,
    rawResponse: {
      statusCode: answer.status,
      headers: Object.fromEntries(answer.headers),
      body: parsed,
      request: { method, url: url.href },
    },
  };
}

const seen = [];
const poller = createHttpPoller(
  {
    sendInitialRequest: () => send("POST", "/bbb", work),
    sendPollRequest: (target) => send("GET", target),
  },
  { intervalInMs: 30000, updateState: (state) => seen.push(state.status) },
);
const result = await poller.pollUntilDone();
console.log(JSON.stringify({ result, seen }));

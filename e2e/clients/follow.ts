// Follows a job with the client that openapi-typescript generates, and prints its
// response. Usage: node follow.js http://host:port
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

declare const process: { argv: string[] };

const client = createClient<paths>({ baseUrl: process.argv[2] });

function must<T>(what: string, got: { data?: T; error?: unknown }): T {
  if (got.data === undefined) {
    throw new Error(`${what}: ${JSON.stringify(got.error)}`);
  }
  return got.data;
}

const accepted = must("POST /bbb", await client.POST("/bbb", { body: { sleep_time: 1 } }));
if (!("id" in accepted)) {
  throw new Error(`POST /bbb: ${JSON.stringify(accepted)}`);
}
const path = { id: accepted.id };
const job = must("GET /jobs/{id}", await client.GET("/jobs/{id}", { params: { path, header: { Prefer: "wait=20" } } }));
if (typeof job === "string" || job.state !== "done") {
  throw new Error(`the job is ${JSON.stringify(job)}`);
}
const result = must("GET /jobs/{id}/response", await client.GET("/jobs/{id}/response", { params: { path } }));
if (!("sleep_time" in result)) {
  throw new Error(`the response is ${JSON.stringify(result)}`);
}
console.log(JSON.stringify({ result }));

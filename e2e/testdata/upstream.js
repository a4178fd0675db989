// An upstream that ends idle connections after a second, says early hints, answers in
// chunks, and works on whether its client is still there or not.
const http = require("http");

let now = 0, most = 0;
const server = http.createServer((req, res) => {
  const body = [];
  req.on("data", (piece) => body.push(piece));
  req.on("end", () => {
    switch (req.url) {
      case "/hints":
        res.writeEarlyHints({ link: "</style.css>; rel=preload" });
        res.writeProcessing();
        res.end("hinted");
        break;
      case "/chunks":
        res.setHeader("Trailer", "X-Sum");
        res.write("one ");
        res.write("two");
        res.addTrailers({ "X-Sum": "7" });
        res.end();
        break;
      case "/moved":
        res.writeHead(302, { location: "http://" + req.headers.host + "/end" }).end();
        break;
      case "/login":
        res.writeHead(302, { location: "/end" }).end();
        break;
      case "/end":
        res.end("the end");
        break;
      case "/work":
        most = Math.max(most, ++now);
        setTimeout(() => { now--; res.end("worked"); }, 300);
        break;
      case "/most":
        res.end(String(most));
        break;
      case "/headers":
        res.end(JSON.stringify(req.rawHeaders));
        break;
      default:
        res.end(Buffer.concat(body));
    }
  });
});
server.keepAliveTimeout = 1000;
server.listen(0, "127.0.0.1", () => console.log("listening on 127.0.0.1:" + server.address().port));

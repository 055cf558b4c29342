// The inbox from another language: node without any package, some lines of RESP over a socket.
// node inbox.mjs redis://HOST:PORT|unix:///PATH <message>…   prints a line of JSON for each result.
import net from "node:net";

const [url, ...messages] = process.argv.slice(2);
const { protocol, hostname, port, pathname } = new URL(url);
const socket = net.connect(protocol === "unix:" ? { path: pathname } : { host: hostname, port: port || 6379 });
let buffer = Buffer.alloc(0);
let wake = () => {};
socket.on("data", (data) => { buffer = Buffer.concat([buffer, data]); wake(); });

const take = async (enough) => {
  let end;
  while ((end = enough()) < 0) await new Promise((resolve) => { wake = resolve; });
  const taken = buffer.subarray(0, end);
  buffer = buffer.subarray(end);
  return taken;
};

const reply = async () => {
  const line = (await take(() => { const at = buffer.indexOf("\r\n"); return at < 0 ? -1 : at + 2; })).toString().trim();
  const [kind, rest] = [line[0], line.slice(1)];
  if (kind === "-") throw new Error(rest);
  if (kind === "$") return rest === "-1" ? null : (await take(() => (buffer.length < +rest + 2 ? -1 : +rest + 2))).subarray(0, -2).toString();
  if (kind === "*") {
    const items = [];
    for (let i = 0; i < +rest; i++) items.push(await reply());
    return rest === "-1" ? null : items;
  }
  return rest;
};

const send = (...words) => {
  socket.write(`*${words.length}\r\n` + words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join(""));
  return reply();
};

let position = "0", left = messages.length;
await send("RPUSH", "ff:inbox", ...messages);
while (left > 0) {
  const streams = await send("XREAD", "BLOCK", "1000", "STREAMS", "ff:results", position);
  for (const [id, [, result]] of streams?.[0][1] ?? []) {
    position = id;
    left -= 1;
    console.log(result);
  }
}
socket.end();

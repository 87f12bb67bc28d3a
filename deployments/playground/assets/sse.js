// Server-sent events out of a stream of bytes. Knows nothing of what they mean.

/** Yields `{name, content}`, the content parsed, as they come; pieces may be cut anywhere. */
export async function* readEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parse(block);
        if (event !== null) yield event;
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined); // it may have failed, which its reader knows
  }
}

function parse(block) {
  let name = "message";
  const lines = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice("event: ".length);
    else if (line.startsWith("data: ")) lines.push(line.slice("data: ".length));
  }
  return lines.length === 0 ? null : { name, content: JSON.parse(lines.join("\n")) };
}

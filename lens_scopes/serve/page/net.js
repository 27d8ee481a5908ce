// Questions and their answers: one request each, whose lines say how far it is and end in a result or an error.

export class Refused extends Error {
  constructor({ kind, text }) {
    super(text);
    this.kind = kind;
  }
}

export async function model() {
  const response = await fetch("/api/1/model");
  if (!response.ok) throw new Refused((await response.json()).error);
  return response.json();
}

/** Ask; `said` gets {queued} and {progress, what}; aborting the signal drops the question on the server too. */
export async function ask(verb, fields, said, signal) {
  const response = await fetch(`/api/1/${verb}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(fields),
    signal,
  });
  if (!response.ok) throw new Refused((await response.json()).error);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let result;
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done && result !== undefined) return result;
    if (done) throw new Refused({ kind: "Lost", text: "the server has gone" });
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.map((text) => JSON.parse(text))) {
      if ("error" in line) throw new Refused(line.error);
      if ("result" in line) result = line.result;
      else said(line);
    }
  }
}

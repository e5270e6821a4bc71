// Requests to the server that the page came from, and its errors in words.

import { key } from './store.js';

/** A request that got no answer, or not all of it. The message is for the reader. */
export class Problem extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    // Seconds, if the server says when to try again.
    this.retryAfter = retryAfter;
  }
}

const UNREACHABLE = 'The server does not answer. Is it running?';
const BROKEN = 'The connection broke before the answer was complete.';

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.read()) headers.Authorization = `Bearer ${key.read()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === 'AbortError' ? error : new Problem(UNREACHABLE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const header = response.headers.get('retry-after');
  const retryAfter = header && Number.isFinite(Number(header)) ? Number(header) : null;
  const said = await response.json().then(
    body => body.error.message,
    () => `The server answered with status ${status}.`,
  );
  return new Problem(inWords(status, said), { status, retryAfter });
}

function inWords(status, said) {
  switch (status) {
    case 401:
      return key.read()
        ? 'The server does not accept this API key.'
        : 'This server needs an API key.';
    case 429:
      return `The server is busy: ${said}`;
    case 503:
      return `The server is not ready: ${said}`;
    default:
      return said;
  }
}

/**
 * The models of the server: [{ id, status, … }]. `status.value` is `loaded`, `loading` or
 * `unloaded`; a server with one model may leave it out.
 */
export async function models() {
  const response = await request('v1/models');
  return (await response.json()).data;
}

/**
 * Facts about a model: its chat template, and the sampling settings of requests that set none. The
 * server loads the model for them.
 */
export async function properties(model) {
  const response = await request(`props?model=${encodeURIComponent(model)}`);
  return await response.json();
}

/** The chunks of a streamed answer. */
export async function* chat(body, signal) {
  const response = await request('v1/chat/completions', {
    method: 'POST',
    signal,
    body: JSON.stringify(body),
    headers: { 'Content-Type': 'application/json' },
  });
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(chunk.error.message);
    yield chunk;
  }
  throw new Problem(BROKEN);
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { done, value } = await reader.read().catch(error => {
      throw error.name === 'AbortError' ? error : new Problem(BROKEN);
    });
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf('\n\n')) >= 0) {
      const event = rest.slice(0, end);
      rest = rest.slice(end + 2);
      if (event.startsWith('data: ')) yield event.slice(6);
    }
  }
}

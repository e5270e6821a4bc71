// A conversation: a tree of messages, because an edited or regenerated message keeps its earlier
// versions. Plain data and pure functions; `store.js` keeps it, `chat.js` shows it.
//
// conversation: { id, title, isNamed, created, updated, revision, leaf, messages }. The messages
// are in the order of their making; `id` of a message is its index and `parent` the index of the
// message before it, or -1. `leaf` is the last shown message, or -1. Times are in milliseconds
// since 1970.
//
// message: { id, parent, role, content } and
// - of an assistant `reasoning`, `calls` ([{ id, name, arguments }]), `model`, `end`, `problem`,
//   and the numbers in `speed`;
// - of a tool `callId` and `name`. `end` is null while the answer is written, else `stop`,
//   `length`, `tool_calls`, `stopped` (by the reader) or `broken`.

const TITLE_MAX = 60;

export function create(now = Date.now()) {
  return {
    id: crypto
      .getRandomValues(new Uint32Array(4))
      .reduce((text, part) => text + part.toString(16).padStart(8, '0'), ''),
    title: 'New conversation',
    isNamed: false,
    created: now,
    updated: now,
    revision: 0,
    leaf: -1,
    messages: [],
  };
}

/** Adds a message behind `parent`, and shows it. */
export function add(conversation, parent, message) {
  const added = { id: conversation.messages.length, parent, ...message };
  conversation.messages.push(added);
  conversation.leaf = added.id;
  if (!conversation.isNamed && parent === -1 && message.role === 'user')
    conversation.title = titleOf(message.content);
  return added;
}

function titleOf(text) {
  const line = text.trim().split('\n')[0];
  const characters = [...line];
  return characters.length > TITLE_MAX ? `${characters.slice(0, TITLE_MAX).join('')}…` : line;
}

/** The shown messages, first to last. */
export function path(conversation, leaf = conversation.leaf) {
  const shown = [];
  for (let id = leaf; id >= 0; id = conversation.messages[id].parent)
    shown.push(conversation.messages[id]);
  return shown.reverse();
}

/** The versions of a message, itself included, in the order of their making. */
export function versions(conversation, message) {
  return conversation.messages.filter(
    ({ parent, role }) => parent === message.parent && role === message.role,
  );
}

/** Shows a message and the newest messages behind it. */
export function choose(conversation, message) {
  // A message is always made after its parent.
  const below = new Set([message.id]);
  conversation.leaf = message.id;
  for (const { id, parent } of conversation.messages) {
    if (!below.has(parent)) continue;
    below.add(id);
    conversation.leaf = id;
  }
}

/** The calls of the last message, or of the results behind it, that have no result yet. */
export function openCalls(conversation) {
  const shown = path(conversation);
  const last = shown.findLastIndex(message => message.role === 'assistant');
  if (last < 0 || shown.slice(last + 1).some(message => message.role !== 'tool')) return [];
  const answered = new Set(shown.slice(last + 1).map(message => message.callId));
  const { calls = [], end } = shown[last];
  return end === 'tool_calls' ? calls.filter(call => !answered.has(call.id)) : [];
}

/**
 * Messages in the form that the server reads. Thinking is left out, and so are answers without a
 * text or a complete call; the messages of the reader before and after them become one, because
 * many templates demand that the roles take turns.
 */
export function toRequest(messages) {
  const sent = [];
  for (const message of messages) {
    const last = sent.at(-1);
    if (message.role === 'tool')
      sent.push({ role: 'tool', tool_call_id: message.callId, content: message.content });
    else if (message.role === 'assistant') sent.push(...answerToRequest(message));
    else if (last?.role === 'user') last.content += `\n\n${message.content}`;
    else sent.push({ role: 'user', content: message.content });
  }
  return sent;
}

function answerToRequest(message) {
  const { content, calls } = message;
  if (!isCalling(message)) return content ? [{ role: 'assistant', content }] : [];
  const toCall = ({ id, name, arguments: text }) => ({
    id,
    type: 'function',
    function: { name, arguments: text },
  });
  return [{ role: 'assistant', content, tool_calls: calls.map(toCall) }];
}

const isCalling = message => message.end === 'tool_calls' && message.calls?.length > 0;

/**
 * A conversation as a file: the shown messages in the form of OpenAI's API, and all versions of all
 * messages.
 */
export function exported(conversation) {
  const { title, created, updated, messages } = conversation;
  return {
    title,
    created: new Date(created).toISOString(),
    updated: new Date(updated).toISOString(),
    messages: toRequest(path(conversation)),
    versions: messages,
  };
}

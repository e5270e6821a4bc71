// What the reader sets: the settings dialog, the model, the API key, and light or dark.

import { models, properties } from './api.js';
import { key, settings } from './store.js';
import { element } from './render.js';

const $ = id => document.getElementById(id);
const dialog = $('settings');
const fields = [...dialog.querySelectorAll('[name]')];
const NUMBERS = [
  'temperature',
  'top_p',
  'top_k',
  'min_p',
  'repetition_penalty',
  'max_tokens',
  'seed',
];
// Settings of the server that have another name in requests.
const RENAMED = { repetition_penalty: 'repeat_penalty' };
// What a field shows if the server sets nothing.
const UNSET = { max_tokens: 'no limit', seed: 'random' };
// What stands behind the name of a model.
const STATES = { loaded: '', loading: ' (loading)', unloaded: ' (not loaded)' };
// Seconds until the page asks a silent server again.
const RETRY_S = 2;
// First messages that the page offers. A model without a chat template continues texts.
const CHAT_STARTS = [
  'What is a ternary weight?',
  'Write a poem about winter',
  'Plan a weekend in the mountains',
];
const STORY_STARTS = ['Once upon a time', 'The little dog wanted to', 'One day, Lily found a'];

const value = name => settings.read(name).trim();

/**
 * The part of a request that the settings make: everything but the messages, which come after the
 * system message.
 */
export function requestFields() {
  const body = {};
  for (const name of NUMBERS) {
    if (value(name)) body[name] = Number(value(name));
  }
  if (value('thinking'))
    body.chat_template_kwargs = { enable_thinking: value('thinking') === 'on' };
  if (value('tools')) body.tools = JSON.parse(value('tools'));
  if (chosenModel()) body.model = chosenModel();
  return body;
}

/** The system message; empty for none. */
export const systemMessage = () => value('system');

/** The model that answers, by its name in the list; empty if the list is not known. */
export const chosenModel = () => $('models').value;

/** Whether the server has several models. */
export const hasChoice = () => $('models').options.length > 1;

/** Whether a text is a list of tools. Empty is. */
function isTools(text) {
  if (!text.trim()) return true;
  try {
    return Array.isArray(JSON.parse(text));
  } catch {
    return false;
  }
}

function setUpDialog() {
  const tools = fields.find(field => field.name === 'tools');
  const check = () =>
    tools.setCustomValidity(isTools(tools.value) ? '' : 'This is not a list in JSON.');
  tools.addEventListener('input', check);
  for (const field of fields) {
    field.addEventListener('change', () => {
      if (field.checkValidity()) settings.write(field.name, field.value);
    });
  }
  $('open-settings').onclick = () => {
    for (const field of fields) field.value = settings.read(field.name);
    check();
    $('forget-key').hidden = !key.read();
    dialog.showModal();
  };
  $('reset').onclick = () => {
    for (const field of fields) {
      field.value = '';
      settings.write(field.name, '');
    }
    check();
  };
  $('forget-key').onclick = () => {
    key.write('');
    dialog.close();
    showModels();
  };
  dialog.addEventListener('click', event => {
    if (event.target === dialog) dialog.close();
  });
}

function setUpTheme() {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  $('theme').onclick = () => {
    const root = document.documentElement;
    const isDark = root.dataset.theme ? root.dataset.theme === 'dark' : dark.matches;
    root.dataset.theme = isDark ? 'light' : 'dark';
    settings.write('theme', root.dataset.theme);
  };
}

/** Asks for the API key. `words` say why. */
export function askForKey(words) {
  $('key-label').textContent = words;
  $('key-form').hidden = false;
  $('key').value = '';
  $('key').focus();
}

function setUpKey(onKey) {
  $('key-form').onsubmit = async event => {
    event.preventDefault();
    key.write($('key').value.trim());
    $('key-form').hidden = true;
    if (await showModels()) onKey();
  };
}

let waiting = null;

/**
 * Shows which models the server has; while it does not answer, tries again. Returns whether it
 * answered.
 */
export async function showModels() {
  clearTimeout(waiting);
  try {
    show(await models());
    await showProperties();
    return true;
  } catch (problem) {
    $('models').hidden = true;
    $('model').hidden = false;
    $('model').textContent = problem.status === 503 ? 'The model is loading…' : problem.message;
    if (problem.status === 401) askForKey(problem.message);
    else waiting = setTimeout(showModels, 1000 * (problem.retryAfter ?? RETRY_S));
    return false;
  }
}

function show(list) {
  const select = $('models');
  const chosen = settings.read('model');
  select.replaceChildren(
    ...list.map(({ id, status }) => {
      const state = status?.value ?? 'loaded';
      return element('option', { value: id, 'data-state': state }, id + (STATES[state] ?? ''));
    }),
  );
  select.value = list.some(({ id }) => id === chosen) ? chosen : list[0].id;
  select.hidden = list.length === 1;
  $('model').hidden = list.length > 1;
  $('model').textContent = list[0].id;
}

/** Shows what the server says about the chosen model, if that is loaded. */
async function showProperties() {
  const [option] = $('models').selectedOptions;
  const isLoaded = option.dataset.state === 'loaded';
  const known = isLoaded ? await properties(option.value).catch(() => null) : null;
  showDefaults(known?.default_generation_settings?.params ?? {});
  showStarts(known?.chat_template === '' ? STORY_STARTS : CHAT_STARTS);
}

function showDefaults(params) {
  for (const name of NUMBERS) {
    const server = params[RENAMED[name] ?? name];
    const field = fields.find(field => field.name === name);
    // Numbers of the server are of single precision; a negative one means that there is none.
    const isKnown = Number.isFinite(server) && server >= 0;
    field.placeholder = isKnown ? Number(server.toPrecision(6)) : (UNSET[name] ?? '');
  }
}

function showStarts(texts) {
  $('starts').replaceChildren(
    ...texts.map(text => element('button', { type: 'button', class: 'plain' }, text)),
  );
}

/** `onKey` is called after the reader gives a key that the server accepts. */
export function setUpOptions(onKey) {
  setUpDialog();
  setUpTheme();
  setUpKey(onKey);
  $('models').onchange = () => {
    settings.write('model', $('models').value);
    showProperties();
  };
}

const ask = $('ask');
$('ask-no').onclick = () => ask.close('');

/**
 * Asks the reader a question. Returns the text that is given, '' if none is asked for, or null if
 * the reader declines.
 */
export function question({ title, text = '', yes, given = null }) {
  $('ask-title').textContent = title;
  $('ask-text').textContent = text;
  $('ask-yes').textContent = yes;
  $('ask-label').hidden = given === null;
  $('ask-value').required = given !== null;
  $('ask-value').value = given ?? '';
  ask.returnValue = '';
  ask.showModal();
  (given === null ? $('ask-yes') : $('ask-value')).focus();
  if (given !== null) $('ask-value').select();
  return new Promise(resolve => {
    ask.onclose = () => resolve(ask.returnValue === 'yes' ? $('ask-value').value.trim() : null);
  });
}

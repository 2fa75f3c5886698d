"use strict";

const RATE = 16000;
const LONGEST = 30;

const $ = (id) => document.getElementById(id);
let clip = null;
let recorder = null;

function tell(text) { $("status").textContent = text; }
function complain(text) { $("trouble").textContent = text; if (text) tell(""); }

function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers() });
  } catch {
    throw new Error("The server does not answer.");
  }
  if (response.ok) return response.json();
  const data = await response.json().catch(() => ({}));
  const error = new Error(data.error?.message ?? `The server answered ${response.status}.`);
  error.status = response.status;
  throw error;
}

async function loadSpeakers() {
  const select = $("speaker");
  try {
    const models = (await ask("/v1/models")).data.map((model) => model.id);
    const [base, ...speakers] = models;
    select.dataset.base = base;
    select.replaceChildren(...speakers.map((id) => new Option(id, id)));
    if (!speakers.length) select.replaceChildren(new Option("No speaker yet: the base alone", base));
    select.disabled = false;
    $("key-field").hidden = !$("key").value;
    complain("");
  } catch (error) {
    select.disabled = true;
    select.replaceChildren(new Option("", ""));
    if (error.status === 401) {
      const tried = $("key").value;
      $("key-field").hidden = false;
      complain(tried ? "This key is not valid." : "");
      if (!tried) tell("This server asks for an access key.");
      $("key").focus();
    } else {
      complain(error.message);
    }
  }
  enable();
}

function enable() {
  $("send").disabled = !clip || $("speaker").disabled || recorder !== null;
}

function take(blob, name) {
  clip = { blob, name };
  const player = $("listen");
  if (player.src) URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(blob);
  player.hidden = false;
  enable();
}

function wav(parts, rate) {
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * length));
  const write = (at, text) => [...text].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  write(0, "RIFF"); view.setUint32(4, 36 + 2 * length, true); write(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  write(36, "data"); view.setUint32(40, 2 * length, true);
  let at = 44;
  for (const part of parts) {
    for (const sample of part) {
      view.setInt16(at, Math.max(-1, Math.min(1, sample)) * 32767, true);
      at += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}

// What a browser records in its own formats, few servers read: samples are collected, and sent as WAV.
async function startRecording() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch {
    complain("The microphone cannot be used. Allow it for this page, or choose a file.");
    return;
  }
  const context = new AudioContext({ sampleRate: RATE });
  const source = context.createMediaStreamSource(stream);
  const node = context.createScriptProcessor(4096, 1, 1);
  const parts = [];
  let samples = 0;
  node.onaudioprocess = (event) => {
    parts.push(new Float32Array(event.inputBuffer.getChannelData(0)));
    samples += event.inputBuffer.length;
    $("time").textContent = `${(samples / context.sampleRate).toFixed(1)} s`;
    if (samples >= LONGEST * context.sampleRate) stopRecording();
  };
  source.connect(node);
  node.connect(context.destination);
  recorder = { stream, context, node, parts };
  $("record").setAttribute("aria-pressed", "true");
  $("record").textContent = "Stop";
  complain("");
  tell("Recording.");
  enable();
}

async function stopRecording() {
  if (!recorder) return;
  const { stream, context, node, parts } = recorder;
  recorder = null;
  node.disconnect();
  stream.getTracks().forEach((track) => track.stop());
  const rate = context.sampleRate;
  await context.close();
  $("record").setAttribute("aria-pressed", "false");
  $("record").textContent = "Record again";
  tell("Recorded.");
  if (parts.length) take(wav(parts, rate), "recording.wav");
  enable();
}

function words(text) { return text.split(/\s+/).filter(Boolean); }
function plain(word) { return word.toLowerCase().replace(/[^\p{L}\p{N}']/gu, ""); }

// Longest common subsequence of the words: what both have is plain, the rest is marked on its side.
function compare(left, right) {
  const a = words(left), b = words(right);
  const table = Array.from({ length: a.length + 1 }, () => new Int32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      const same = plain(a[i]) === plain(b[j]);
      table[i][j] = same ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  const sides = [[], []];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && plain(a[i]) === plain(b[j])) {
      sides[0].push([a[i++], false]); sides[1].push([b[j++], false]);
    } else if (j >= b.length || (i < a.length && table[i + 1][j] >= table[i][j + 1])) {
      sides[0].push([a[i++], true]);
    } else {
      sides[1].push([b[j++], true]);
    }
  }
  return sides;
}

function show(id, tokens, tag) {
  const target = $(id);
  target.replaceChildren();
  for (const [word, differs] of tokens) {
    if (target.childNodes.length) target.append(" ");
    if (differs) {
      const mark = document.createElement(tag);
      mark.textContent = word;
      target.append(mark);
    } else {
      target.append(word);
    }
  }
  if (!tokens.length) target.textContent = "(nothing)";
}

async function transcribe(model) {
  const form = new FormData();
  form.append("file", clip.blob, clip.name);
  form.append("model", model);
  form.append("response_format", "verbose_json");
  return ask("/v1/audio/transcriptions", { method: "POST", body: form });
}

async function send(event) {
  event.preventDefault();
  const speaker = $("speaker").value, base = $("speaker").dataset.base;
  $("send").disabled = true;
  complain("");
  tell("Transcribing…");
  try {
    const [all, own] = await Promise.all([transcribe(base), transcribe(speaker)]);
    const [left, right] = compare(all.text, own.text);
    show("base-text", left, "del");
    show("own-text", right, "ins");
    const differing = right.filter(([, differs]) => differs).length + left.filter(([, differs]) => differs).length;
    $("own-title").textContent = `For ${speaker}`;
    $("summary").textContent = own.transcribed_by === "base" && speaker !== base
      ? "The base was used for this speaker too: the Submodel is no better on recordings held back, or cannot be used."
      : differing ? `${differing} words differ; they are marked.` : "Both are the same.";
    $("result").hidden = false;
    tell("Done.");
    $("result-title").focus();
  } catch (error) {
    complain(error.message);
  }
  enable();
}

$("record").addEventListener("click", () => (recorder ? stopRecording() : startRecording()));
$("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) take(file, file.name);
});
$("enter").addEventListener("click", loadSpeakers);
$("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); loadSpeakers(); }
});
$("ask").addEventListener("submit", send);
loadSpeakers();

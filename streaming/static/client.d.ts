/** Types of /client.js: a client for `WS /v1/chat/ws`. */

export type Role = "system" | "user" | "assistant";

export interface Part {
  type: "text" | "reasoning";
  text: string;
}

/** A message as Vercel's AI SDK keeps it. */
export interface Message {
  id: string;
  role: Role;
  parts: Part[];
  metadata?: unknown;
}

/** What may stand in `body`: sampling and scheduling, spelled as in the HTTP routes. */
export interface Options {
  model?: string;
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  top_k?: number;
  min_p?: number;
  seed?: number;
  stop?: string | string[];
  presence_penalty?: number;
  frequency_penalty?: number;
  repetition_penalty?: number;
  deadline_ms?: number;
  priority?: number;
  chat_template_kwargs?: Record<string, unknown>;
  [name: string]: unknown;
}

export interface Metadata {
  responseId?: string;
  requestId?: string;
  model?: string;
  /** Milliseconds since 1970. */
  createdAt?: number;
  finishReason?: string;
  usage?: { inputTokens: number; outputTokens: number; totalTokens: number; cachedInputTokens: number };
  queuedMs?: number;
  timeToFirstTokenMs?: number;
  totalMs?: number;
  tokensPerSecond?: number;
}

export type ChatEvent =
  | { type: "start"; messageId: string }
  /** News while nothing is said: what the server is doing, and how far it is. */
  | {
      type: "status";
      state: "queued" | "prefill" | "generating";
      queuePosition?: number;
      promptTokensDone?: number;
      promptTokens?: number;
    }
  /** `delta` is new; `text` is all of it so far. Reasoning comes before the answer, from models that reason. */
  | { type: "text" | "reasoning"; delta: string; text: string }
  | { type: "finish"; finishReason: FinishReason; metadata: Metadata };

export type FinishReason = "stop" | "length" | "interrupted" | "aborted";
export type State = "idle" | "connecting" | "open" | "waiting" | "closed";

export interface SendOptions {
  /** The chat's id: one answer at a time, and what `resume` asks for. */
  id: string;
  /** The whole conversation, to the message that is to be answered. */
  messages: Message[];
  trigger?: "submit-message" | "regenerate-message";
  messageId?: string;
  body?: Options;
  metadata?: unknown;
}

export interface ClientOptions {
  /** Where the socket is; relative to the page. Default: "/v1/chat/ws". */
  url?: string;
  /** Gives a fresh one-time ticket, or null for none; called before every connection. Throw a ChatError to give up. */
  ticket?: (() => string | null | Promise<string | null>) | null;
  onState?: (state: State) => void;
  /** Where there is no global WebSocket, such as `ws` in Node.js. */
  webSocket?: unknown;
}

export class ChatError extends Error {
  /** "refused" by the server, "failed" there after it began, "lost" for good, or "closed" by this side. */
  code: "refused" | "failed" | "lost" | "closed";
  constructor(code: ChatError["code"], message: string);
}

export class ChatClient {
  constructor(options?: ClientOptions);
  readonly state: State;
  /** Ask for an answer. It begins at once; iterate to follow it. */
  send(options: SendOptions): Answer;
  /** The answer that a chat has on the server, running or kept, from its first word; null where there is none. */
  resume(chatId: string): Promise<Answer | null>;
  /** End the connection. Answers in progress go on at the server for as long as it keeps them. */
  close(): void;
}

/** One answer; iterate it once. Leaving the loop stops it. Raises ChatError. */
export class Answer implements AsyncIterable<ChatEvent> {
  readonly chatId: string;
  readonly requestId: string;
  readonly text: string;
  readonly reasoning: string;
  readonly messageId: string | null;
  readonly metadata: Metadata;
  readonly finishReason: FinishReason | null;
  readonly isDone: boolean;
  /** Whether the server has it: true with the first frame. */
  readonly found: Promise<boolean>;
  /** End the answer on the server, for everyone who follows it. */
  stop(): void;
  [Symbol.asyncIterator](): AsyncIterator<ChatEvent, void, void>;
}

/** A user's message as `send` takes it. */
export function userMessage(text: string, id?: string): Message;

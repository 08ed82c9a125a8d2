// Files of data on the server: each is sent once, and named by the requests that follow.
import { ApiError, checkUnchanged, upload } from "../api";

export interface Files {
  data: File | null;
  validation?: File | null;
}

const ids = new WeakMap<File, Promise<string>>();

/** What `call` makes of a body that names these files; those that the server has no longer are sent once more. */
export async function withFiles<T>({ data, validation = null }: Files, body: object, call: (body: object) => Promise<T>): Promise<T> {
  const named = async () => call({
    ...body,
    ...(data && { data_file: await idOf(data) }),
    ...(validation && { validation_file: await idOf(validation) }),
  });
  try {
    return await named();
  } catch (error) {
    if (!(error instanceof ApiError && error.code === "no_file")) throw error;
    for (const file of [data, validation]) if (file) ids.delete(file);
    return named();
  }
}

async function idOf(file: File): Promise<string> {
  await checkUnchanged([file]);
  const known = ids.get(file);
  if (known) return known;
  const form = new FormData();
  form.append("file", file, file.name);
  const sent = upload<{ id: string }>("/v1/files", form).then(({ id }) => id);
  ids.set(file, sent);
  sent.catch(() => ids.delete(file));
  return sent;
}

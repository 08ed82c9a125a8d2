// Uploads whose progress is seen, which fetch does not say.
import { ApiError, checkUnchanged, failures } from "./api";

/** The answer to a form that is sent; `onShare` hears how much of it is, from 0 to 1. Throws ApiError as `call` does. */
export async function send<T>(path: string, form: FormData, onShare: (share: number) => void, signal?: AbortSignal): Promise<T> {
  await checkUnchanged([...form.values()].filter((value) => value instanceof File));
  signal?.throwIfAborted();
  const failureOf = failures(path);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.responseType = "json";
    request.setRequestHeader("X-Halka-Page", "1");
    request.upload.onprogress = ({ loaded, total, lengthComputable }) => lengthComputable && onShare(loaded / total);
    request.onload = () => {
      if (request.status >= 200 && request.status < 300) resolve(request.response as T);
      else reject(failureOf(request.response, request.status));
    };
    request.onerror = () => reject(new ApiError("", 0, "unreachable"));
    request.onabort = () => reject(signal?.reason);
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/**
 * Facts of ONNX Runtime's public header onnxruntime_c_api.h (version 1.29), read from its struct OrtApi: the place of
 * each function that src/c_api.js calls, and how many parameters it has. Entries are append-only: places never change.
 *
 * @type {Record<string, [place: number, parameters: number]>}
 */
// prettier-ignore
export const HEADER = {
  GetErrorMessage: [2, 1], CreateEnv: [3, 3], CreateSession: [7, 4], CreateSessionOptions: [10, 1],
  SetSessionExecutionMode: [13, 2], EnableMemPattern: [16, 1], DisableMemPattern: [17, 1], EnableCpuMemArena: [18, 1],
  DisableCpuMemArena: [19, 1], SetSessionLogId: [20, 2], SetSessionLogVerbosityLevel: [21, 2],
  SetSessionLogSeverityLevel: [22, 2], SetSessionGraphOptimizationLevel: [23, 2], SetIntraOpNumThreads: [24, 2],
  SetInterOpNumThreads: [25, 2], SessionGetInputCount: [30, 2], SessionGetOutputCount: [31, 2],
  SessionGetInputTypeInfo: [33, 3], SessionGetOutputTypeInfo: [34, 3], SessionGetInputName: [36, 4],
  SessionGetOutputName: [37, 4], CreateRunOptions: [39, 1], CreateTensorWithDataAsOrtValue: [49, 7],
  GetTensorMutableData: [51, 2], CastTypeInfoToTensorInfo: [55, 2], GetTensorElementType: [60, 2],
  GetDimensionsCount: [61, 2], GetDimensions: [62, 3], GetSymbolicDimensions: [63, 3], GetTensorTypeAndShape: [65, 2],
  CreateCpuMemoryInfo: [69, 3], AllocatorFree: [76, 2], GetAllocatorWithDefaultOptions: [78, 1],
  ReleaseStatus: [93, 1], ReleaseMemoryInfo: [94, 1], ReleaseSession: [95, 1], ReleaseValue: [96, 1],
  ReleaseRunOptions: [97, 1], ReleaseTypeInfo: [98, 1], ReleaseTensorTypeAndShapeInfo: [99, 1],
  ReleaseSessionOptions: [100, 1], AddSessionConfigEntry: [130, 3], RunWithBinding: [133, 3], CreateIoBinding: [134, 2],
  ReleaseIoBinding: [135, 1], BindInput: [136, 3], BindOutput: [137, 3], BindOutputToDevice: [138, 3],
  GetBoundOutputValues: [140, 4], ClearBoundOutputs: [142, 1],
}
